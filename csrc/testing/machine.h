// Executes one launch after another: blocks in random order, and of a block's threads at any time a random one of those
// that may go on. A fiber runs one thread after another until one has to wait, so kernels without barriers never switch
// stacks.
#pragma once

#include <vector_types.h>

#include <array>
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

// Lane l of a warp sees what lane k did to memory at k's times up to seen[k]. Lane l's own time is seen[l], which warp
// barriers advance.
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

inline std::string text(const Site& site) { return site.file_name() + (":" + std::to_string(site.line())); }

class Machine {
 public:
  void seed(uint64_t value) { random_ = value; }
  const Thread& thread() const { return *current_; }
  uint64_t epoch() const { return epoch_; }  // of memory: advances at block barriers and with every block
  uint64_t block() const { return block_; }  // counts all blocks ever run

  // Keep the first thing that went wrong in a launch; `message` makes its text.
  template <typename Message>
  void report(Message message) {
    if (message_.empty()) message_ = message();
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

// Splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
inline uint64_t Machine::draw() {
  uint64_t z = random_ += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

inline bool Machine::run(dim3 grid, dim3 block, void (*body)(void*), void* context) {
  const std::lock_guard only(one_launch_);
  gridDim = grid;
  blockDim = block;
  body_ = body;
  context_ = context;
  message_.clear();
  std::vector<uint64_t> blocks(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), uint64_t{0});
  for (size_t left = blocks.size(); left > 0; --left) {
    std::swap(blocks[left - 1], blocks[draw_below(left)]);
    const uint64_t at = blocks[left - 1];
    blockIdx.x = static_cast<unsigned>(at % grid.x);
    blockIdx.y = static_cast<unsigned>(at / grid.x % grid.y);
    blockIdx.z = static_cast<unsigned>(at / grid.x / grid.y);
    run_block(block);
  }
  return message_.empty();
}

inline void Machine::run_block(dim3 block) {
  begin(block);
  Thread* first = next();
  activate(*first);
  home_.switch_to(*first->fiber);
  current_ = nullptr;  // back where no thread can go on
  for (const Thread& thread : threads_) {
    if (thread.state == State::kExited) continue;
    report_stuck();
    fibers_.clear();  // with what lies on their stacks
    idle_.clear();
    return;
  }
}

inline void Machine::begin(dim3 block) {
  const int count = static_cast<int>(block.x * block.y * block.z);
  const int warps = (count + kLanesOfWarp - 1) / kLanesOfWarp;
  ++epoch_;
  ++block_;
  arrived_ = 0;
  threads_.assign(count, Thread{});
  warps_.assign(warps, Warp{});
  if (count % kLanesOfWarp != 0) warps_.back().gone = ~0u << count % kLanesOfWarp;
  ready_.clear();
  for (int id = 0; id < count; ++id) {
    Thread& thread = threads_[id];
    thread.id = id;
    thread.warp = id / kLanesOfWarp;
    thread.lane = id % kLanesOfWarp;
    thread.index = {id % block.x, id / block.x % block.y, id / block.x / block.y};
    thread.seen[thread.lane] = 1;
    ready_.push_back(&thread);
  }
}

// What every fiber does for ever: run the current thread to its end, then whichever may go on.
inline void Machine::work() {
  Machine& m = machine;
  for (;;) {
    Thread& thread = *m.current_;
    Fiber* own = thread.fiber;
    m.body_(m.context_);
    m.leave(thread);
    m.idle_.push_back(own);
    if (Thread* after = m.next(); after == nullptr) {
      own->switch_to(m.home_);
    } else {
      m.activate(*after);
      if (after->fiber != own) own->switch_to(*after->fiber);
    }
  }
}

inline void Machine::leave(Thread& thread) {
  thread.state = State::kExited;
  Warp& warp = warps_[thread.warp];
  warp.gone |= 1u << thread.lane;
  for (int other = 0; other < kLanesOfWarp; ++other) {  // who waits for this one alone need not any more
    if (warp.waiting >> other & 1) settle(thread.warp, lane(thread.warp, other).mask);
  }
}

// Take any of the threads that may go on out of their list; nullptr if there is none.
inline Thread* Machine::next() {
  if (ready_.empty()) return nullptr;
  std::swap(ready_[draw_below(ready_.size())], ready_.back());
  Thread* chosen = ready_.back();
  ready_.pop_back();
  return chosen;
}

// Make it the current thread, with a stack if it has none yet; the caller switches to it.
inline void Machine::activate(Thread& thread) {
  if (thread.fiber == nullptr) {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(&Machine::work));
      idle_.push_back(fibers_.back().get());
    }
    thread.fiber = idle_.back();
    idle_.pop_back();
  }
  thread.state = State::kReady;
  current_ = &thread;
  threadIdx = thread.index;
}

inline void Machine::wait() {
  Fiber* own = current_->fiber;
  Thread* after = next();
  if (after != nullptr) activate(*after);
  Fiber& other = after != nullptr ? *after->fiber : home_;
  if (&other != own) own->switch_to(other);
}

}  // namespace trimaran::emulation
