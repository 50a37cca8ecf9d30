// What host and device agree on: the operands of a launch and the plan for it. No device code, no torch.
#pragma once

#include "../problem.h"

namespace nanonet::cuda {

constexpr int kMaxStudents = 8, kMaxStudentsOfAny = 4;  // of the kl family; of any divergence

// A launch that reduces over blocks uses one counter and leaves it at 0. Counters are handed out in turn, so two
// launches can share one only with this many in flight at once (register.cpp has a separate range for captured graphs).
constexpr uint32_t kCounters = 8192;

// Up to so many rows every block counts the denominators itself; beyond that a launch before it does. Weights are read
// one after the other, so their limit is lower.
constexpr int64_t kCountedByEveryBlock = 4096, kWeighedByEveryBlock = 512;

// A small operand of any floating dtype; an axis that it lacks has stride 0.
struct Values {
  const char* data;  // null: absent
  Dtype dtype;
  int64_t stride[3];  // in elements
};

// The loss of N rows of C classes and K students; null where an operand is absent or an output is not wanted.
struct Call {
  int64_t N;
  int32_t K, C;
  int32_t divergence;
  float temperature, beta;
  Rows student[kMaxStudents];  // each (N,C), all of one dtype
  Rows teacher;                // (N,C)
  const int64_t* label;        // (N)
  int64_t label_stride;
  Values upstream;      // (3,K,N): backward alone
  Values weights;       // (3): the loss alone
  Values row_weight;    // (K,N)
  Values denominators;  // (2,K); absent: counted by every block
  bool from_stats;      // stats are an input, not an output
  float* stats;         // (K+1,N,4)
  float* terms;         // (3,K,N)
  char* dstudent;       // (K,N,C), contiguous
  float* loss;          // ()
  float* means;         // (3,K)
  double* partials;     // (blocks,3,K): what each block adds to the means
  uint32_t counter;     // index of this launch's counter
};

struct Device {
  int sms;                  // streaming multiprocessors (SM)
  int major;                // of the compute capability
  int64_t shared_of_block;  // shared memory that one block may have, in bytes
  int64_t shared_of_sm;     // shared memory of an SM
  bool has_code = true;     // whether the build has code for its architecture
};

enum class Regime { kSmall, kChip, kCluster, kSweep };

// For measurements: the kernel to use instead of the one in the table of plan.cuh.
struct PlanOverride {
  Regime regime;
  int cluster;
};

struct Plan {
  Regime regime;
  int values, width;  // small: classes per lane, lanes per row
  int cluster;        // blocks that share a row
  int blocks;         // of the grid
};

}  // namespace nanonet::cuda
