// Launches the CUDA kernels on the CPU as the launchers of csrc/cuda do on a GPU; guarded outputs.
#pragma once

#include "cuda_on_cpu.h"

#include "cuda/plan.cuh"

namespace nanonet {

using cuda::Call;
using cuda::Plan;
using cuda::Regime;

constexpr unsigned kThreads = 64;  // of a block: fewer than on a GPU, so that each has several chunks

inline void launch(const Call& p, const Plan& plan) {
  const bool exact = plan.regime == Regime::kSmall || cuda::all_bfloat16(p);
  cuda::with_kernel(p, exact, [&]<int kK, bool kKlSlopes, bool kExact>() {
    const auto chip_bytes = [&](int parts) { return size_t(cuda::chip_bytes<kK>(p, parts)); };
    if (plan.regime == Regime::kSmall) {
      const auto kernel = [&] {
        if constexpr (kKlSlopes && kK <= 4)
          if (plan.values == 8) return cuda::distill_small_kernel<kK, kKlSlopes, 8>(p, plan.width);
        cuda::distill_small_kernel<kK, kKlSlopes, 4>(p, plan.width);
      };
      emulation::launch(unsigned(plan.blocks), kThreads, 1, sizeof(cuda::SmallShared<kK>), kernel);
    } else if (plan.regime == Regime::kSweep) {
      const int64_t bytes = cuda::sweep_bytes<kK, kKlSlopes, kExact>(p, int(kThreads));
      emulation::launch(unsigned(plan.blocks), kThreads, 1, size_t(bytes),
                        [&] { cuda::distill_sweep_kernel<kK, kKlSlopes, kExact>(p); });
    } else if (plan.regime == Regime::kChip) {
      emulation::launch(unsigned(plan.blocks), kThreads, 1, chip_bytes(1),
                        [&] { cuda::distill_chip_kernel<kK, kKlSlopes, kExact, false>(p); });
    } else {
      emulation::launch(unsigned(plan.blocks), kThreads, unsigned(plan.cluster),
                        chip_bytes(plan.cluster),
                        [&] { cuda::distill_chip_kernel<kK, kKlSlopes, kExact, true>(p); });
    }
  });
}

// An output between two guards that must stay untouched.
struct Output {
  static constexpr size_t kGuard = 64;
  std::vector<char> memory;
  size_t bytes, offset;
  Output(size_t bytes, size_t offset = 0)
      : memory(bytes + offset + 2 * kGuard + 16, char(0xa5)), bytes(bytes), offset(offset) {
    std::memset(data(), 0xff, bytes);
  }
  char* data() {
    char* start = memory.data() + kGuard;
    return start + (16 - uintptr_t(start) % 16) % 16 + offset;
  }
  bool intact() {
    for (char* at = memory.data(); at < memory.data() + memory.size(); ++at)
      if ((at < data() || at >= data() + bytes) && *at != char(0xa5)) return false;
    return true;
  }
};

}  // namespace nanonet
