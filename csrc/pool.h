// Freed gradients wait here for the next one: fresh memory costs a page fault every 4 KiB, which is 3 to 10 times what the
// loss itself takes. A block belongs to one tensor from take() to give(), which the tensor's deleter calls.
#pragma once

#include <cstdlib>
#include <list>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "memory.h"

namespace nanonet {

class Pool {
 public:
  static constexpr int64_t kSmallest = 1 << 20;  // below, the allocator reuses pages itself

  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: a tensor may live longer than statics do
    return *pool;
  }

  struct Block {
    void* data;
    int64_t bytes;
  };

  // The smallest waiting block that is large enough and not twice that, else fresh memory.
  Block take(int64_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      auto best = waiting_.end();
      for (auto block = waiting_.begin(); block != waiting_.end(); ++block)
        if (block->bytes >= bytes && block->bytes / 2 <= bytes && (best == waiting_.end() || block->bytes < best->bytes))
          best = block;
      if (best != waiting_.end()) {
        const Block block = *best;
        waiting_.erase(best);
        held_ -= block.bytes;
        return block;
      }
    }
    constexpr int64_t kPage = 2 << 20;
    const int64_t rounded = (bytes + kPage - 1) / kPage * kPage;
    void* data = std::aligned_alloc(kPage, size_t(rounded));
    if (data == nullptr) throw std::bad_alloc();
    ask_for_huge_pages(data, rounded);
    return {data, rounded};
  }

  // Keeps the block; those that have waited longest make room for it.
  void give(Block block) noexcept {
    std::list<Block> dropped, kept;
    try {
      (block.bytes > limit_ ? dropped : kept).push_back(block);
    } catch (const std::bad_alloc&) {
      return std::free(block.data);
    }
    {
      const std::lock_guard lock(mutex_);
      for (const Block& one : kept) held_ += one.bytes;
      waiting_.splice(waiting_.end(), kept);
      while (held_ > limit_) {
        held_ -= waiting_.front().bytes;
        dropped.splice(dropped.end(), waiting_, waiting_.begin());
      }
    }
    for (const Block& one : dropped) std::free(one.data);
  }

  // Gives everything that waits back to the system; how many bytes that was.
  int64_t release() {
    std::list<Block> dropped;
    int64_t bytes;
    {
      const std::lock_guard lock(mutex_);
      dropped.swap(waiting_);
      bytes = held_;
      held_ = 0;
    }
    for (const Block& one : dropped) std::free(one.data);
    return bytes;
  }

  int64_t limit() const { return limit_; }

 private:
  // NANONET_POOL_MB, by default 256; 0 turns the pool off.
  static int64_t limit_from_environment() {
    const char* text = std::getenv("NANONET_POOL_MB");
    if (text == nullptr || *text == '\0') return int64_t(256) << 20;
    char* end;
    const long long megabytes = std::strtoll(text, &end, 10);
    if (*end != '\0' || megabytes < 0 || megabytes > (1 << 30))
      throw std::runtime_error(std::string("NANONET_POOL_MB: expected a whole number of megabytes, got '") + text + "'");
    return int64_t(megabytes) << 20;
  }

  std::mutex mutex_;
  std::list<Block> waiting_;  // longest first
  int64_t held_ = 0;
  const int64_t limit_ = limit_from_environment();
};

}  // namespace nanonet
