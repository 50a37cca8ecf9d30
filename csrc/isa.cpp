#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace nanonet {

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

std::vector<const Kernels*> kernels_compiled() {
#if defined(__x86_64__)
  return {&baseline::kernels, &avx2::kernels, &avx512::kernels};
#else
  return {&baseline::kernels};
#endif
}

std::vector<const Kernels*> kernels_supported() {
  std::vector<const Kernels*> supported = {&baseline::kernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    supported.push_back(&avx2::kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      supported.push_back(&avx512::kernels);
  }
#endif
  return supported;
}

static const Kernels& choose() {
  const auto supported = kernels_supported();
  const char* wanted = std::getenv("NANONET_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *supported.back();
  std::string names;
  for (const Kernels* kernels : supported) {
    if (std::string(wanted) == kernels->name) return *kernels;
    names += std::string(names.empty() ? "" : ", ") + kernels->name;
  }
  throw std::runtime_error("NANONET_CPU_ISA: expected one of " + names + " (what this CPU has), got '" + wanted + "'");
}

const Kernels& kernels_in_use() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace nanonet
