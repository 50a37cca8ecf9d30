#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "amx.h"
#if defined(NANONET_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

#if defined(NANONET_AMX)
static bool has_tiles() {
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d >> 22 & 1) && (d >> 24 & 1);  // bf16, tile
}

static bool may_use_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM: without it the first tile ends the process
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool amx_ready() {
  static const bool ready = [] {
    const char* wanted = std::getenv("NANONET_CPU_ISA");
    const bool narrower = wanted != nullptr && *wanted != '\0' && std::strcmp(wanted, "avx512") != 0;
    return !narrower && kernels_supported().back() == &avx512::kernels && has_tiles() && may_use_tiles();
  }();
  return ready;
}
#else
bool amx_ready() { return false; }
#endif

}  // namespace nanonet
