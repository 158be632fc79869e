// What dense attention computes, in plain numbers; see attention_kernels.h.

#pragma once

#include "products.h"

namespace leandetr {

// For every image and head softmax(q k^T / sqrt(D)) v. Numbers of a row that belong to a head lie together.
struct Attention {
  long B, H, Q, S, D;  // images, heads, queries, keys, channels of a head
  Columns query, key, value;  // rows of H * D numbers of the type that is multiplied
  long query_image, key_image, value_image;  // from one image to the next
  const bool* blocked;  // null, or (B, S): keys that nobody may look at
  void* y;              // (B, Q, H, D), of that type
};

// One table per instruction set and type that multiplies. Tasks are heads of images; different ranges write apart.
struct Attentions {
  long channels;  // those of a head are a multiple of this
  long (*bytes)(const Attention&);  // of memory that a range brings
  void (*attend)(const Attention&, void* memory, long begin, long end);
};

namespace avx2 {
extern const Attentions float32_attention;
}
namespace avx512 {
extern const Attentions float32_attention;
}
namespace avx512_bf16 {
extern const Attentions bfloat16_attention;
}

}  // namespace leandetr
