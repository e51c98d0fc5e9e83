// An array in shared memory that knows who touched what when. An access outside of it is reported, and so is one that
// no barrier orders against another thread's access to the same element, if either writes. Elements are all ones, a
// NaN, until the block writes them.
#pragma once

#include <concepts>
#include <cstring>
#include <type_traits>

#include "machine.h"

namespace trimaran::emulation {

// Who touched an element last. What happened in an earlier epoch is over; within an epoch only lanes of one warp can be
// ordered, by the warp's barriers, so that is all that has to be kept of reads.
class Accesses {
 public:
  // Return the other access and its thread's id, if this one races with it.
  std::pair<const Site*, int> read(const Site& site);
  std::pair<const Site*, int> write(const Site& site);

 private:
  bool after_write(const Thread& thread) const {
    return written_ != machine.epoch() || writer_ == thread.id ||
           (writer_ / kLanesOfWarp == thread.warp && writer_time_ <= thread.seen[writer_ % kLanesOfWarp]);
  }
  int unordered_reader(const Thread& thread) const;

  uint64_t written_ = 0, read_ = 0;  // epochs
  Site write_site_, read_site_;
  int writer_ = 0;
  uint32_t writer_time_ = 0;
  int warp_ = 0;        // of the epoch's first reader,
  unsigned lanes_ = 0;  // its lanes that have read
  Clock times_{};       // and when they did
  int stranger_ = -1;   // a reader from another warp
};

inline std::pair<const Site*, int> Accesses::read(const Site& site) {
  const Thread& thread = machine.thread();
  if (read_ != machine.epoch()) {
    read_ = machine.epoch();
    warp_ = thread.warp;
    lanes_ = 0;
    stranger_ = -1;
  }
  if (warp_ == thread.warp) {
    lanes_ |= 1u << thread.lane;
    times_[thread.lane] = thread.seen[thread.lane];
  } else {
    stranger_ = thread.id;
  }
  read_site_ = site;
  return {after_write(thread) ? nullptr : &write_site_, writer_};
}

inline int Accesses::unordered_reader(const Thread& thread) const {
  if (read_ != machine.epoch()) return -1;
  if (stranger_ >= 0 && stranger_ / kLanesOfWarp != thread.warp) return stranger_;
  for (unsigned rest = lanes_; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (warp_ != thread.warp || (lane != thread.lane && times_[lane] > thread.seen[lane]))
      return warp_ * kLanesOfWarp + lane;
  }
  return -1;
}
