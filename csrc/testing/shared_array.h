// An array in shared memory that knows who touched what when. An access outside of it is reported, and so is one that
// no barrier orders against another thread's access to the same element, if either writes. Elements are all ones, a
// NaN, until the block writes them.
#pragma once

#include <bit>
#include <concepts>
#include <cstring>
#include <optional>
#include <type_traits>

#include "machine.h"

namespace trimaran::emulation {

// The earlier access that a thread's access races with.
struct Conflict {
  const char* what;
  int thread;
  Site site;
};

// Who touched an element last. What happened in an earlier epoch is over; within an epoch only lanes of one warp can be
// ordered, by the warp's barriers, so that is all that has to be kept of reads.
class Accesses {
 public:
  std::optional<Conflict> read(const Site& site) {
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
    return unordered_write(thread);
  }

  std::optional<Conflict> write(const Site& site) {
    const Thread& thread = machine.thread();
    std::optional<Conflict> conflict = unordered_write(thread);
    if (!conflict) conflict = unordered_read(thread);
    written_ = machine.epoch();
    writer_ = thread.id;
    writer_time_ = thread.seen[thread.lane];
    write_site_ = site;
    read_ = 0;  // whoever is ordered after this write is after those reads too
    return conflict;
  }

 private:
  std::optional<Conflict> unordered_write(const Thread& thread) const {
    if (written_ != machine.epoch() || writer_ == thread.id) return {};
    const bool neighbours = writer_ / kLanesOfWarp == thread.warp;
    if (neighbours && writer_time_ <= thread.seen[writer_ % kLanesOfWarp]) return {};
    return Conflict{"written", writer_, write_site_};
  }

  std::optional<Conflict> unordered_read(const Thread& thread) const {
    if (read_ != machine.epoch()) return {};
    if (stranger_ >= 0 && stranger_ / kLanesOfWarp != thread.warp) return Conflict{"read", stranger_, read_site_};
    for (unsigned rest = lanes_; rest != 0; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      if (warp_ != thread.warp || (lane != thread.lane && times_[lane] > thread.seen[lane]))
        return Conflict{"read", warp_ * kLanesOfWarp + lane, read_site_};
    }
    return {};
  }

  uint64_t written_ = 0, read_ = 0;  // epochs
  Site write_site_, read_site_;
  int writer_ = 0;
  uint32_t writer_time_ = 0;
  int warp_ = 0;        // of the epoch's first reader,
  unsigned lanes_ = 0;  // its lanes that have read,
  Clock times_{};       // and when they did
  int stranger_ = -1;   // a reader from another warp
};

// An index that knows the source line it is written on.
struct Index {
  template <std::integral I>
  Index(I index, const Site& site = Site::current()) : at(static_cast<int64_t>(index)), site(site) {}

  int64_t at;
  Site site;
};

template <typename T, size_t N>
class SharedArray {
  static_assert(std::is_trivially_copyable_v<T> && N > 0 && N * sizeof(T) <= 48 * 1024, "as CUDA has it");

 public:
  // What name[i] is. It must be used where it is written: a copy of it would be read too late.
  class Element {
   public:
    Element(SharedArray& array, const Index& index) : array_(array), index_(index) {}
    operator T() && { return array_.load(index_); }
    template <typename U>
      requires(!std::same_as<T, U> && std::is_arithmetic_v<T> && std::is_arithmetic_v<U>)
    explicit operator U() && {
      return static_cast<U>(array_.load(index_));
    }
    T operator=(const T& value) && { return array_.store(index_, value); }
    T operator=(Element&& other) && { return array_.store(index_, static_cast<Element&&>(other)); }
    T operator+=(const T& value) && { return array_.store(index_, array_.load(index_) + value); }
    T operator*=(const T& value) && { return array_.store(index_, array_.load(index_) * value); }

   private:
    SharedArray& array_;
    Index index_;
  };

  explicit SharedArray(const char* name, const Site& site = Site::current()) : name_(name), site_(site), slots_(N) {}

  Element operator[](const Index& index) { return Element(*this, index); }

 private:
  struct Slot {
    alignas(T) unsigned char bytes[sizeof(T)];
    Accesses accesses;
  };

  T load(const Index& index) {
    unsigned char bytes[sizeof(T)];
    std::memset(bytes, 0xFF, sizeof bytes);
    if (Slot* slot = find(index); slot != nullptr) {
      if (const auto conflict = slot->accesses.read(index.site)) report_race(index, "read", *conflict);
      std::memcpy(bytes, slot->bytes, sizeof bytes);
    }
    return std::bit_cast<T>(bytes);
  }

  T store(const Index& index, const T& value) {
    if (Slot* slot = find(index); slot != nullptr) {
      if (const auto conflict = slot->accesses.write(index.site)) report_race(index, "written", *conflict);
      std::memcpy(slot->bytes, &value, sizeof value);
    }
    return value;
  }

  // The element's slot, or nullptr, reported, if there is none.
  Slot* find(const Index& index) {
    if (block_ != machine.block()) {
      block_ = machine.block();
      for (Slot& slot : slots_) std::memset(slot.bytes, 0xFF, sizeof slot.bytes);
    }
    if (index.at >= 0 && index.at < static_cast<int64_t>(N)) return &slots_[index.at];
    machine.report([&] {
      return "bounds: " + describe(index) + " does not exist, thread " + text(threadIdx) + " of block " +
             text(blockIdx) + " uses it at " + text(index.site);
    });
    return nullptr;
  }

  void report_race(const Index& index, const char* what, const Conflict& other) const {
    machine.report([&] {
      return "race: " + describe(index) + " is " + what + " by thread " + std::to_string(machine.thread().id) +
             " at " + text(index.site) + " and " + other.what + " by thread " + std::to_string(other.thread) + " at " +
             text(other.site) + " with no barrier in between, block " + text(blockIdx);
    });
  }

  std::string describe(const Index& index) const {
    return "element " + std::to_string(index.at) + " of " + name_ + "[" + std::to_string(N) + "] (" + text(site_) +
           " in " + site_.function_name() + ")";
  }

  const char* name_;
  Site site_;
  std::vector<Slot> slots_;
  uint64_t block_ = 0;
};

}  // namespace trimaran::emulation
