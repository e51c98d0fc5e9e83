// Executes one launch after another: blocks in random order, the threads of a block as fibers that are resumed in random
// order whenever they may go on. A fiber runs threads to their ends until one has to wait for others, so kernels without
// barriers switch stacks never.
#pragma once

#include <vector_types.h>

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <mutex>
#include <numeric>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

// What CUDA kernels know about themselves.
inline dim3 gridDim, blockDim;
inline uint3 blockIdx, threadIdx;

namespace trimaran::emulation {

using Site = std::source_location;

constexpr int kLanesOfWarp = 32;

enum class State { kReady, kAtBarrier, kInWarp, kExited };
enum class Meeting { kSync, kShuffle, kVote };  // the reasons for lanes of a warp to wait for each other

// Lane l of a warp has seen what lane k wrote to memory at k's times below seen[k]; times advance by barriers.
using Clock = std::array<uint32_t, kLanesOfWarp>;

struct Thread {
  int id, warp, lane;
  uint3 index;
  State state = State::kReady;
  Fiber* fiber = nullptr;
  Site site;  // of the barrier, shuffle or vote at which it waits
  Meeting meeting;
  unsigned mask;
  int source;                // lane that a shuffle reads
  uint64_t given, received;  // bits of a shuffled value; of a vote
  Clock seen;
};

struct Warp {
  unsigned waiting = 0;  // lanes at a meeting
  unsigned gone = 0;     // lanes that have exited, or that the block's size leaves out
};

inline std::string text(uint3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

inline std::string text(const Site& site) {
  return std::string(site.file_name()) + ":" + std::to_string(site.line()) + " in " + site.function_name();
}

class Machine {
 public:
  void seed(uint64_t value) { random_ = value; }
  const Thread& thread() const { return *current_; }
  uint64_t epoch() const { return epoch_; }  // of memory: advances at block barriers and with every block
  uint64_t block() const { return block_; }  // counts all blocks ever run

  // Keep the first thing that went wrong in a launch.
  void report(const std::string& message) {
    if (message_.empty()) message_ = message + ", thread " + text(threadIdx) + " of block " + text(blockIdx);
  }

  // What was reported last, which is forgotten.
  const char* take_message() {
    taken_ = std::exchange(message_, {});
    return taken_.c_str();
  }

  // Call body(context) as every thread of every block; false if anything was reported.
  bool run(dim3 grid, dim3 block, void (*body)(void*), void* context);

  void block_barrier(const Site& site);
  uint64_t meet(Meeting meeting, unsigned mask, uint64_t given, int source, const Site& site);

 private:
  void run_block(dim3 block);
  void begin(dim3 block);
  static void work();
  void leave(Thread& thread);
  void wait();
  Thread* next();
  void activate(Thread& thread);
  void settle(int warp, unsigned mask);
  void deliver(int warp, unsigned lanes);
  void report_stuck();
  Thread& lane(int warp, int at) { return threads_[static_cast<size_t>(warp) * kLanesOfWarp + at]; }
  uint64_t draw();
  size_t draw_below(size_t count) { return static_cast<size_t>((draw() >> 32) * count >> 32); }

  std::mutex one_launch_;
  std::string message_, taken_;
  uint64_t random_ = 0, epoch_ = 0, block_ = 0;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;

  std::vector<Thread> threads_;  // of the block
  std::vector<Warp> warps_;
  std::vector<Thread*> ready_;
  Thread* current_ = nullptr;
  size_t arrived_ = 0;  // at the block's barrier
  Site barrier_;        // where the first of them did

  Fiber home_;  // whoever called run
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
};

inline Machine machine;
