// Rows in the shared memory of a block.
#include "launch.cuh"

namespace nanonet::cuda {

void launch_chip(const Launch& l) {
  with_kernel(l.call, all_bfloat16(l.call), [&]<int kK, bool kKlSlopes, bool kBfloat16>() {
    launch_blocks<distill_chip_kernel<kK, kKlSlopes, kBfloat16, false>>(l, threads_of(kK, kKlSlopes, kBfloat16),
                                                                  chip_bytes<kK>(l.call, 1));
  });
}

}  // namespace nanonet::cuda
