// Plain numbers out of tensors.

#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace leandetr {

// The one number of a tensor; another where there is none.
inline float number(const std::optional<at::Tensor>& tensor, float otherwise) {
  if (!tensor) return otherwise;
  TORCH_CHECK(tensor->numel() == 1 && tensor->device().is_cpu(), "expected one number on the CPU, got ",
              tensor->sizes(), " on ", tensor->device());
  return tensor->scalar_type() == at::kFloat ? *tensor->data_ptr<float>() : tensor->item<float>();
}

}  // namespace leandetr
