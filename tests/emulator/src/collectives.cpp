// Warp collectives: every lane that the mask names must reach the same call; the last lane to
// arrive computes for all.
#include <string>

#include "runtime.h"

namespace simt {
namespace {

struct Meeting {
  unsigned mask, arrived;
  const char* operation;
  Site site;
  void* arguments[32];
};

// Collectives in progress, by warp. Disjoint masks proceed side by side; overlapping ones wait for
// each other.
std::vector<std::vector<Meeting>> meetings;

Meeting& meeting_of(unsigned warp, unsigned mask) {
  for (Meeting& meeting : meetings[warp]) {
    if (meeting.arrived != 0 && meeting.mask == mask) return meeting;
  }
  for (Meeting& meeting : meetings[warp]) {
    if (meeting.arrived == 0) return meeting;
  }
  return meetings[warp].emplace_back();
}

bool same_place(Site a, Site b) {
  return a.line == b.line && std::string(a.file) == std::string(b.file);
}

std::string lane_name(unsigned warp, unsigned lane) {
  return "lane " + std::to_string(lane) + " of warp " + std::to_string(warp);
}

struct ShuffleArguments {
  Shuffle kind;
  int lane, width;
  uint64_t bits, result;
};

int source_of(const ShuffleArguments& ask, int lane) {
  const int first = lane & ~(ask.width - 1), end = first + ask.width;
  int source = lane;
  switch (ask.kind) {
    case Shuffle::kIndex:
      return first + (ask.lane & (ask.width - 1));
    case Shuffle::kUp:
      source = lane - ask.lane;
      return source < first ? lane : source;
    case Shuffle::kDown:
      source = lane + ask.lane;
      break;
    case Shuffle::kXor:
      source = lane ^ ask.lane;
      break;
  }
  return source >= end ? lane : source;
}

void finish_shuffle(void* const* arguments, unsigned mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto& ask = *static_cast<ShuffleArguments*>(arguments[lane]);
    const int source = source_of(ask, lane);
    if (!(mask >> source & 1)) {
      fail("shuffle: lane " + std::to_string(lane) + " reads lane " + std::to_string(source) +
           ", which does not take part, at " + place(current()->site));
    }
    ask.result = static_cast<ShuffleArguments*>(arguments[source])->bits;
  }
}

struct VoteArguments {
  unsigned value, result;
};

void finish_vote(void* const* arguments, unsigned mask) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) votes |= static_cast<VoteArguments*>(arguments[lane])->value << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) static_cast<VoteArguments*>(arguments[lane])->result = votes;
  }
}

void finish_sum(void* const* arguments, unsigned mask) {
  unsigned sum = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) sum += static_cast<VoteArguments*>(arguments[lane])->value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) static_cast<VoteArguments*>(arguments[lane])->result = sum;
  }
}

void finish_warp_barrier(void* const* arguments, unsigned mask) {
  std::vector<Fiber*> threads;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) threads.push_back(static_cast<Fiber*>(arguments[lane]));
  }
  join(threads);
}

}  // namespace

void clear_collectives() {
  meetings.resize((block().fibers.size() + 31) / 32);
  for (std::vector<Meeting>& of_warp : meetings) of_warp.assign(32, {});  // one a lane: none moves
}

void meet(unsigned mask, const char* operation, Site site, void* arguments,
          void (*finish)(void* const*, unsigned)) {
  const unsigned thread = current()->thread, warp = thread / 32, lane = thread % 32;
  const unsigned threads = static_cast<unsigned>(block().fibers.size()) - warp * 32;
  mask &= threads >= 32 ? 0xffffffffu : (1u << threads) - 1;
  current()->site = site;
  if (!(mask >> lane & 1)) {
    fail(std::string(operation) + " at " + place(site) + ": the mask does not name the caller, " +
         lane_name(warp, lane));
  }
  Meeting& meeting = meeting_of(warp, mask);
  if (meeting.arrived == 0) {
    meeting.mask = mask;
    meeting.operation = operation;
    meeting.site = site;
  } else if (std::string(meeting.operation) != operation || !same_place(meeting.site, site)) {
    const unsigned other = static_cast<unsigned>(__builtin_ctz(meeting.arrived));
    fail("warp diverged: " + lane_name(warp, lane) + " comes to " + operation + " at " +
         place(site) + ", lane " + std::to_string(other) + " waits in " + meeting.operation +
         " at " + place(meeting.site));
  }
  meeting.arrived |= 1u << lane;
  meeting.arguments[lane] = arguments;
  if (meeting.arrived != mask) {
    yield(State::kWarp, operation, site);
    return;
  }
  finish(meeting.arguments, mask);
  meeting.arrived = 0;
  for (unsigned other = 0; other < 32; ++other) {
    if (other != lane && (mask >> other & 1)) {
      block().fibers[warp * 32 + other].state = State::kReady;
    }
  }
}

std::string describe_incomplete_collective() {
  for (const Fiber& fiber : block().fibers) {
    if (fiber.state != State::kWarp) continue;
    const unsigned warp = fiber.thread / 32;
    for (const Meeting& meeting : meetings[warp]) {
      if (!(meeting.arrived >> fiber.thread % 32 & 1)) continue;
      const unsigned missing =
          static_cast<unsigned>(__builtin_ctz(meeting.mask & ~meeting.arrived));
      const Fiber& absent = block().fibers[warp * 32 + missing];
      const std::string reason =
          absent.state == State::kDone
              ? " has exited"
              : std::string(" waits in ") + absent.waits_for + " at " + place(absent.site);
      return std::string(meeting.operation) + " at " + place(meeting.site) +
             " never completes: " + lane_name(warp, missing) + reason;
    }
  }
  return {};
}

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int lane, int width, Site site) {
  const Busy busy;
  static const char* const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                      "__shfl_xor_sync"};
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail("shuffle: a width of " + std::to_string(width) + " at " + place(site));
  }
  ShuffleArguments arguments{kind, lane, width, bits, 0};
  meet(mask, names[static_cast<int>(kind)], site, &arguments, finish_shuffle);
  return arguments.result;
}

unsigned vote(unsigned mask, bool predicate, Site site) {
  const Busy busy;
  VoteArguments arguments{predicate, 0};
  meet(mask, "a vote", site, &arguments, finish_vote);
  return arguments.result;
}

unsigned reduce_add(unsigned mask, unsigned value, Site site) {
  const Busy busy;
  VoteArguments arguments{value, 0};
  meet(mask, "__reduce_add_sync", site, &arguments, finish_sum);
  return arguments.result;
}

void warp_barrier(unsigned mask, Site site) {
  const Busy busy;
  meet(mask, "__syncwarp", site, current(), finish_warp_barrier);
}

}  // namespace simt
