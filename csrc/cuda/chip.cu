// Rows in the shared memory of a block.
#include "launch.cuh"

namespace nanonet::cuda {

template <int kK, bool kKl>
static void run(const Launch& l) {
  static bool allowed[kMaxDevices];
  const auto kernel = distill_chip_kernel<kK, kKl, false>;
  allow_shared_memory(kernel, l, allowed);
  const size_t bytes = size_t(shared_bytes<BlockShared<kK>>()) + size_t(stage_bytes(l.call, 1));
  kernel<<<l.plan.blocks, threads_of(kK, kKl), bytes, l.stream>>>(l.call);
  check(cudaGetLastError());
}

void launch_chip(const Launch& l) {
  with_kernel(l.call, [&]<int kK, bool kKl>() { run<kK, kKl>(l); });
}

}  // namespace nanonet::cuda
