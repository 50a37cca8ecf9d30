// Rows in global memory.
#include "launch.cuh"

namespace nanonet::cuda {

void launch_sweep(const Launch& l) {
  with_kernel(l.call, all_bfloat16(l.call), [&]<int kK, bool kKlSlopes, bool kBfloat16>() {
    launch_blocks<distill_sweep_kernel<kK, kKlSlopes, kBfloat16>>(l, threads_of(kK, kKlSlopes, kBfloat16),
                                                            sweep_bytes<kK, kKlSlopes, kBfloat16>(l.call));
  });
}

}  // namespace nanonet::cuda
