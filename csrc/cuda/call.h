// What host and device agree on: the operands of a launch and the plan for it. No device code, no torch.
#pragma once

#include "../problem.h"

namespace nanonet::cuda {

constexpr int kMaxStudents = 8, kMaxStudentsOfAny = 4;  // with kl; with any divergence

// A launch that reduces has a counter for itself and leaves it at 0. They are handed out in turn: two launches could meet
// in one only with this many in flight at once (register.cpp keeps those of captured graphs apart).
constexpr uint32_t kCounters = 8192;

// Rows up to which every block counts the denominators for itself, rather than a launch before: of labels, and of weights,
// which it reads one after the other.
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
  float temperature;
  Rows student[kMaxStudents];  // each (N,C), all of one dtype
  Rows teacher;                // (N,C)
  const int64_t* label;        // (N)
  int64_t label_stride;
  Values upstream;      // (3,K,N): backward alone
  Values weights;       // (3): the loss alone
  Values row_weight;    // (K,N)
  Values denominators;  // (2,K); absent: counted by every block
  bool from_stats;      // stats are read, not written
  float* stats;         // (K+1,N,4)
  float* terms;         // (3,K,N)
  char* dstudent;       // (K,N,C), contiguous
  float* loss;          // ()
  float* means;         // (3,K)
  double* partials;     // (blocks,3,K): what each block adds to the means
  uint32_t counter;     // which of the counters this launch has for itself
};

struct Device {
  int processors;           // streaming multiprocessors
  int major;                // of the compute capability
  int64_t shared_of_block;  // the most that a block may ask for, in bytes
  int64_t shared_of_processor;
  bool has_code = true;  // of its architecture, in what was built
};

enum class Regime { kSmall, kChip, kCluster, kSweep };

// A kernel that is asked for instead of what the table names, for measurements.
struct Wish {
  Regime regime;
  int cluster;
};

struct Plan {
  Regime regime;
  int values, width;  // small: classes a lane, lanes a row
  int cluster;        // blocks that share a row
  int blocks;         // of the grid, at most
};

}  // namespace nanonet::cuda
