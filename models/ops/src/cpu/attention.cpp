// Dense attention of CPU tensors: checks, memory, threads, and the choice of kernels for this processor.

#include "attention.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "memory.h"
#include "processor.h"

namespace leandetr {
namespace {

const Attentions& find_attention(at::ScalarType type) {
#if defined(__x86_64__) && defined(__GNUC__)
  const Isa isa = choose_isa();
  if (type == at::kFloat && isa == Isa::avx512) return avx512::float32_attention;
  if (type == at::kFloat && isa == Isa::avx2) return avx2::float32_attention;
#ifdef LEANDETR_BFLOAT16_PRODUCTS
  if (type == at::kBFloat16 && isa == Isa::avx512 && __builtin_cpu_supports("avx512bf16"))
    return avx512_bf16::bfloat16_attention;
#endif
#endif
  TORCH_CHECK(false, "no attention in ", type, " for this processor");
}

// Whole rows of one type, some numbers apart.
at::Tensor as_rows(const at::Tensor& x, at::ScalarType type) {
  const at::Tensor rows = x.to(type);
  return rows.stride(2) == 1 && rows.stride(1) >= rows.size(2) ? rows : rows.contiguous();
}

at::Tensor attend(const at::Tensor& query_, const at::Tensor& key_, const at::Tensor& value_,
                  const std::optional<at::Tensor>& blocked_, int64_t heads, at::ScalarType type) {
  const Attentions& kernels = find_attention(type);
  for (const at::Tensor& tensor : {query_, key_, value_})
    TORCH_CHECK(tensor.device().is_cpu() && tensor.dim() == 3, "expected (B, N, C) on the CPU, got ", tensor.sizes(),
                " on ", tensor.device());
  TORCH_CHECK(key_.sizes() == value_.sizes() && key_.size(0) == query_.size(0) && key_.size(2) == query_.size(2),
              "query ", query_.sizes(), ", key ", key_.sizes(), " and value ", value_.sizes(), " do not fit");
  const int64_t width = query_.size(2);
  TORCH_CHECK(heads > 0 && width % heads == 0 && width / heads % kernels.channels == 0, "no kernel for ", width,
              " channels of ", heads, " heads");
  const at::Tensor query = as_rows(query_, type), key = as_rows(key_, type), value = as_rows(value_, type);
  Attention p = {};
  p.B = query.size(0);
  p.H = heads;
  p.Q = query.size(1);
  p.S = key.size(1);
  p.D = width / heads;
  TORCH_CHECK(p.S > 0, "there are no keys");
  p.query = {query.data_ptr(), width, query.stride(1)};
  p.key = {key.data_ptr(), width, key.stride(1)};
  p.value = {value.data_ptr(), width, value.stride(1)};
  p.query_image = query.stride(0);
  p.key_image = key.stride(0);
  p.value_image = value.stride(0);
  at::Tensor blocked;
  if (blocked_) {
    TORCH_CHECK(blocked_->device().is_cpu() && blocked_->scalar_type() == at::kBool &&
                    blocked_->sizes() == at::IntArrayRef({p.B, p.S}),
                "blocked must be bool (", p.B, ", ", p.S, ") on the CPU, got ", blocked_->scalar_type(), " ",
                blocked_->sizes());
    blocked = blocked_->contiguous();
    p.blocked = blocked.data_ptr<bool>();
  }
  at::Tensor y = at::empty({p.B, p.Q, width}, query.options());
  p.y = y.data_ptr();
  if (y.numel() == 0) return y;
  in_threads(p.B * p.H, kernels.bytes(p),
             [&](void* memory, int64_t begin, int64_t end) { kernels.attend(p, memory, begin, end); });
  return y;
}

}  // namespace
}  // namespace leandetr

TORCH_LIBRARY_IMPL(leandetr, CPU, m) { m.impl("attend", leandetr::attend); }
