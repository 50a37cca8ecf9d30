// The launchers, for register.cpp. Each kernel family is compiled in its own file, so that they build in parallel.
#pragma once

#include <cuda_runtime_api.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "call.h"

namespace nanonet::cuda {

constexpr int kMaxDevices = 64;

struct Launch {
  Call call;
  Plan plan;
  Device device;
  int device_index;
  cudaStream_t stream;
};

bool has_code_for_current_device();
void serve(int device_index);  // in register.cpp
Plan plan_for(const Call& call, const Device& device);
void override_plan(const std::optional<PlanOverride>& plan);  // for every later plan; none: back to the table
void launch_small(const Launch& launch);
void launch_chip(const Launch& launch);
void launch_cluster(const Launch& launch);
void launch_sweep(const Launch& launch);
void launch_count(const Launch& launch, int blocks, double* totals);
void launch_scale(const Launch& launch, char* data, Dtype dtype, int64_t elements, const Values& factor);

inline void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which the next launch would report again
  throw std::runtime_error(std::string("nanonet: CUDA says ") + cudaGetErrorString(status));
}

}  // namespace nanonet::cuda
