// Where threads wait for each other: barriers of blocks and warps, shuffles and votes.
#pragma once

#include <algorithm>
#include <bit>
#include <string_view>

#include "machine.h"

namespace trimaran::emulation {

inline bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::string_view(a.file_name()) == b.file_name();
}

inline void Machine::block_barrier(const Site& site) {
  current_->state = State::kAtBarrier;
  current_->site = site;
  if (arrived_++ == 0) barrier_ = site;
  if (!same(site, barrier_)) {
    report([&] {
      return "divergence: threads of block " + text(blockIdx) + " are at different barriers, " + text(barrier_) +
             " and " + text(site) + " in " + site.function_name();
    });
  }
  if (arrived_ == threads_.size()) {
    arrived_ = 0;
    ++epoch_;
    for (Thread& thread : threads_) ready_.push_back(&thread);
  }
  wait();
}

// Wait until all lanes in `mask` that have not exited are at such a meeting with the same mask, and take what it gives
// this lane.
inline uint64_t Machine::meet(Meeting meeting, unsigned mask, uint64_t given, int source, const Site& site) {
  Thread& thread = *current_;
  if ((mask >> thread.lane & 1) == 0) {
    report([&] {
      return "divergence: thread " + text(threadIdx) + " is not in its own mask " + std::to_string(mask) + " at " +
             text(site) + " in " + site.function_name();
    });
    return ~uint64_t{0};
  }
  thread.state = State::kInWarp;
  thread.site = site;
  thread.meeting = meeting;
  thread.mask = mask;
  thread.given = given;
  thread.source = source;
  warps_[thread.warp].waiting |= 1u << thread.lane;
  settle(thread.warp, mask);
  wait();
  return thread.received;
}

// End the meeting of the lanes in `mask`, if all of them are there.
inline void Machine::settle(int warp, unsigned mask) {
  const unsigned waiting = warps_[warp].waiting & mask;
  if ((waiting | (warps_[warp].gone & mask)) != mask) return;
  const Meeting meeting = lane(warp, std::countr_zero(waiting)).meeting;
  for (unsigned rest = waiting; rest != 0; rest &= rest - 1) {
    const Thread& thread = lane(warp, std::countr_zero(rest));
    if (thread.mask != mask || thread.meeting != meeting) return;
  }
  deliver(warp, waiting);
}

// What lanes get is decided while all of them wait: the first to go on may be at the next meeting before the last has
// left this one. A shuffle from a lane that takes no part, which CUDA leaves undefined, gives all ones: a NaN.
inline void Machine::deliver(int warp, unsigned lanes) {
  const Meeting meeting = lane(warp, std::countr_zero(lanes)).meeting;
  unsigned votes = 0;
  Clock seen{};
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const Thread& thread = lane(warp, std::countr_zero(rest));
    votes |= static_cast<unsigned>(thread.given != 0) << thread.lane;
    if (meeting == Meeting::kSync)
      for (int at = 0; at < kLanesOfWarp; ++at) seen[at] = std::max(seen[at], thread.seen[at]);
  }
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    Thread& thread = lane(warp, std::countr_zero(rest));
    if (meeting == Meeting::kShuffle) {
      thread.received = lanes >> thread.source & 1 ? lane(warp, thread.source).given : ~uint64_t{0};
    } else if (meeting == Meeting::kVote) {
      thread.received = votes;
    } else {
      thread.seen = seen;
      ++thread.seen[thread.lane];
    }
    ready_.push_back(&thread);
  }
  warps_[warp].waiting &= ~lanes;
}

// Nobody can go on: say who waits where.
inline void Machine::report_stuck() {
  size_t at_barrier = 0, in_warp = 0;
  Site site;
  for (const Thread& thread : threads_) {
    at_barrier += thread.state == State::kAtBarrier;
    in_warp += thread.state == State::kInWarp;
    if (thread.state == State::kInWarp) site = thread.site;
  }
  report([&] {
    const auto count = [](size_t threads) { return std::to_string(threads); };
    std::string all = "divergence: in block " + text(blockIdx);
    if (at_barrier > 0) {
      all += " " + count(at_barrier) + " threads wait at the barrier " + text(barrier_) + " in " +
             barrier_.function_name() + ",";
    }
    if (in_warp > 0) {
      all += " " + count(in_warp) + " threads wait for others of their warps, one at " + text(site) + " in " +
             site.function_name() + ",";
    }
    return all + " " + count(threads_.size() - at_barrier - in_warp) + " have exited";
  });
}

}  // namespace trimaran::emulation
