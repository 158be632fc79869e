// Which instructions this processor has.

#pragma once

#include <cstdlib>
#include <string>

namespace leandetr {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set of this processor, or a lesser one that LEANDETR_CPU asks for.
inline Isa choose_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const char* wish = std::getenv("LEANDETR_CPU");
  const std::string wanted = wish ? wish : "avx512";
  if (wanted == "avx512" && avx512) return Isa::avx512;
  if (wanted != "baseline" && avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

}  // namespace leandetr
