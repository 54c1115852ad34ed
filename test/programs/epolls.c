// epoll: the watched descriptors with their events and data, edge-triggered and one-shot entries
// (a spent one stays spent), and an epoll in an epoll. With the argument "busy", which needs Linux 6.9, also how it asks the
// device before it sleeps.
#include "test.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

// struct epoll_params of newer headers.
struct busy_polling {
  uint32_t usecs;
  uint16_t budget;
  uint8_t prefer, padding;
};
#define SET_BUSY_POLLING _IOW(0x8A, 0x01, struct busy_polling)
#define GET_BUSY_POLLING _IOR(0x8A, 0x02, struct busy_polling)
static bool busy;

enum { LEVEL, EDGE, ONE_SHOT, SPENT, WRITABLE, MANY };
static const uint32_t wanted[] = {EPOLLIN, EPOLLIN | EPOLLET, EPOLLIN | EPOLLONESHOT,
                                  EPOLLIN | EPOLLONESHOT, EPOLLOUT | EPOLLRDHUP | EPOLLET};
static int events[MANY], poller, outer;

static uint64_t data_of(int i) { return 0x1122334455667700ULL + i; }

static void set_entry(int operation, int i) {
  struct epoll_event event = {.events = wanted[i], .data.u64 = data_of(i)};
  MUST(epoll_ctl(poller, operation, events[i], &event));
}

// Bits of the entries that have events now.
static unsigned ready_now(void) {
  struct epoll_event list[MANY + 1];
  unsigned seen = 0;
  int count = epoll_wait(poller, list, MANY + 1, 0);
  for (int i = 0; i < count; i++) {
    uint64_t index = list[i].data.u64 - data_of(0);
    EXPECT(index < MANY, "unknown data %lx", list[i].data.u64);
    if (index < MANY) seen |= 1u << index;
  }
  return seen;
}

static void signal_event(int i) {
  uint64_t one = 1;
  EXPECT(write(events[i], &one, 8) == 8, "write: %m");
}

static void clear_events(void) {
  uint64_t value;
  for (int i = 0; i < MANY; i++)
    while (read(events[i], &value, 8) == 8) continue;
}

// Every entry as fdinfo tells it: number, events, data. The disabled one shows no EPOLLIN.
static void expect_entries(void) {
  char path[64], text[4096];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", poller);
  read_text(path, text, sizeof text);
  int entries = 0;
  for (char *line = strstr(text, "tfd:"); line != NULL; line = strstr(line + 4, "tfd:")) {
    int fd;
    unsigned mask;
    unsigned long data;
    if (sscanf(line, "tfd: %d events: %x data: %lx", &fd, &mask, &data) != 3) continue;
    entries++;
    int i = (int)(data - data_of(0));
    EXPECT(i >= 0 && i < MANY && fd == events[i], "entry of %d has the data %lx", fd, data);
    uint32_t expected = wanted[i] | EPOLLERR | EPOLLHUP;
    // Only waiting makes an entry "spent" to the kernel. One that is added anew without events gets EPOLLERR and EPOLLHUP,
    // as all do (EPOLL_CTL_ADD), so these two bits come back, with CRIU too.
    if (i == SPENT) {
      expected &= EPOLLET | EPOLLONESHOT | EPOLLWAKEUP | EPOLLEXCLUSIVE;
      mask &= ~(uint32_t)(EPOLLERR | EPOLLHUP);
    }
    EXPECT(mask == expected, "entry %d has the events %x, wanted %x", i, mask, expected);
  }
  EXPECT_EQ(entries, MANY);
}

static void check(void) {
  struct epoll_event event;
  expect_entries();
  struct busy_polling polling = {0};
  if (busy) {
    EXPECT_EQ(ioctl(poller, GET_BUSY_POLLING, &polling), 0);
    EXPECT(polling.usecs == 7 && polling.budget == 4 && polling.prefer == 1, "the busy polling");
  }
  ready_now(); // a writable edge may be told anew
  clear_events();
  EXPECT((ready_now() & ~(1u << WRITABLE)) == 0, "events come from nowhere");
  EXPECT(epoll_wait(outer, &event, 1, 0) == 0 || event.data.u64 == 5, "the outer epoll's data");
  for (int i = LEVEL; i <= SPENT; i++) signal_event(i);
  EXPECT(epoll_wait(outer, &event, 1, 0) == 1 && event.data.u64 == 5, "the outer epoll is silent");
  unsigned first = 1u << LEVEL | 1u << EDGE | 1u << ONE_SHOT;
  EXPECT((ready_now() & ~(1u << WRITABLE)) == first, "the first wait tells other events");
  EXPECT((ready_now() & ~(1u << WRITABLE)) == 1u << LEVEL, "the second wait tells other events");
  clear_events();
  set_entry(EPOLL_CTL_MOD, ONE_SHOT);
}

static void rearm(void) { set_entry(EPOLL_CTL_MOD, SPENT); }

int main(int argc, char **argv) {
  begin();
  tamper = rearm;
  busy = argc > 1 && strcmp(argv[1], "busy") == 0;
  poller = MUST(epoll_create1(EPOLL_CLOEXEC));
  outer = MUST(epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 5};
  struct busy_polling polling = {.usecs = 7, .budget = 4, .prefer = 1};
  if (busy) MUST(ioctl(poller, SET_BUSY_POLLING, &polling));
  for (int i = 0; i < MANY; i++) {
    events[i] = MUST(eventfd(0, EFD_NONBLOCK));
    set_entry(EPOLL_CTL_ADD, i);
  }
  MUST(epoll_ctl(outer, EPOLL_CTL_ADD, poller, &event));
  signal_event(SPENT);
  ready_now();
  clear_events();
  serve(check);
}
