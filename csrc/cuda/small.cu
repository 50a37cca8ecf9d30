// Rows in registers; counting, scaling; the plan.
#include "launch.cuh"

namespace nanonet::cuda {

template <int kK, bool kKlSlopes, int kV>
static void run(const Launch& l) {
  distill_small_kernel<kK, kKlSlopes, kV>
      <<<l.plan.blocks, kSmallThreads, sizeof(SmallShared<kK>), l.stream>>>(l.call, l.plan.width);
  check(cudaGetLastError());
}

bool has_code_for_current_device() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, distill_scale_kernel<Values>);
  if (status != cudaErrorNoKernelImageForDevice && status != cudaErrorInvalidDeviceFunction) check(status);
  else cudaGetLastError();
  return status == cudaSuccess;
}

static std::optional<PlanOverride> plan_override;

void override_plan(const std::optional<PlanOverride>& plan) { plan_override = plan; }
Plan plan_for(const Call& call, const Device& device) { return plan_of(call, device, plan_override); }

void launch_small(const Launch& l) {
  with_kernel(l.call, true, [&]<int kK, bool kKlSlopes, bool>() {
    if constexpr (kKlSlopes && kK <= 4)
      if (l.plan.values == 8) return run<kK, kKlSlopes, 8>(l);
    run<kK, kKlSlopes, 4>(l);
  });
}

void launch_count(const Launch& l, int blocks, double* totals) {
  distill_count_kernel<kMaxStudents>
      <<<blocks, kCountThreads, sizeof(Reduction<kMaxStudents>), l.stream>>>(l.call, totals);
  check(cudaGetLastError());
}

void launch_scale(const Launch& l, char* data, Dtype dtype, int64_t elements, const Values& factor) {
  const int64_t wanted = elements / (kChunk * kCountThreads) + 1, most = int64_t(l.device.sms) * 8;
  const int blocks = int(wanted < most ? wanted : most);
  distill_scale_kernel<<<blocks, kCountThreads, 0, l.stream>>>(data, dtype, elements, factor);
  check(cudaGetLastError());
}

}  // namespace nanonet::cuda
