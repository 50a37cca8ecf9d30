// How the tests launch the CUDA kernels: on the CPU, as the launchers of csrc/cuda do on a GPU.
#pragma once

#include "cuda_on_cpu.h"

#include "cuda/plan.cuh"

namespace nanonet {

using cuda::Call;
using cuda::Plan;
using cuda::Regime;

constexpr unsigned kThreads = 64;  // of a block: fewer than on a GPU, so that each takes several turns

inline void launch(const Call& p, const Plan& plan) {
  const bool exact = plan.regime == Regime::kSmall || cuda::all_bfloat16(p);
  cuda::with_kernel(p, exact, [&]<int kK, bool kKl, bool kExact>() {
    const size_t fixed = size_t(cuda::shared_bytes<cuda::BlockShared<kK>>());
    if (plan.regime == Regime::kSmall) {
      const auto kernel = [&] {
        if constexpr (kK <= 4)
          if (plan.values == 8) return cuda::distill_small_kernel<kK, kKl, 8>(p, plan.width);
        cuda::distill_small_kernel<kK, kKl, 4>(p, plan.width);
      };
      emulation::launch(unsigned(plan.blocks), kThreads, 1, sizeof(cuda::SmallShared<kK>), kernel);
    } else if (plan.regime == Regime::kSweep) {
      emulation::launch(unsigned(plan.blocks), kThreads, 1, size_t(cuda::sweep_bytes<kK, kKl, kExact>(p, int(kThreads))),
                        [&] { cuda::distill_sweep_kernel<kK, kKl, kExact>(p); });
    } else if (plan.regime == Regime::kChip) {
      emulation::launch(unsigned(plan.blocks), kThreads, 1, fixed + size_t(cuda::stage_bytes(p, 1)),
                        [&] { cuda::distill_chip_kernel<kK, kKl, kExact, false>(p); });
    } else {
      emulation::launch(unsigned(plan.blocks), kThreads, unsigned(plan.cluster),
                        fixed + size_t(cuda::stage_bytes(p, plan.cluster)),
                        [&] { cuda::distill_chip_kernel<kK, kKl, kExact, true>(p); });
    }
  });
}

// An output of n values between two guards that nobody may touch.
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
