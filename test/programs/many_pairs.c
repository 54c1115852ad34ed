// N pairs (the argument; 20 without one) of pipes and of unix sockets by turns, each with something inside: twice as many open files,
// of which two have something in common. Not more files may be open than the second argument says, if there is one, or, if that is
// "full", the pipes have as much inside as they take.
#include "test.h"
#include <sys/resource.h>
#include <sys/socket.h>

static int total;
static int (*pairs)[2];

static bool is_full;
static char big[65536];

static void put(int i) {
  if (is_full && i % 2 == 0) {
    EXPECT(write(pairs[i][1], big, sizeof big) == sizeof big, "pipe %d: %m", i);
    return;
  }
  int length = 1 + i % 7;
  EXPECT(write(pairs[i][1], "abcdefg", length) == length, "pair %d: %m", i);
}

static void check_full(int i) {
  static char text[sizeof big];
  ssize_t got = read(pairs[i][0], text, sizeof text);
  EXPECT(got == sizeof big && memcmp(text, big, sizeof big) == 0, "pipe %d gives %zd bytes", i, got);
}

static void check(void) {
  for (int i = 0; i < total; i++) {
    if (is_full && i % 2 == 0) {
      check_full(i);
      put(i);
      continue;
    }
    char text[8] = "";
    ssize_t wanted = 1 + i % 7, got = read(pairs[i][0], text, sizeof text);
    EXPECT(got == wanted && memcmp(text, "abcdefg", wanted) == 0, "pair %d gives %zd: %s", i, got, text);
    put(i);
  }
}

static void take_one(void) {
  char byte;
  MUST(read(pairs[total / 2][0], &byte, 1));
}

int main(int argc, char **argv) {
  begin();
  tamper = take_one;
  total = argc > 1 ? atoi(argv[1]) : 20;
  is_full = argc > 2 && strcmp(argv[2], "full") == 0;
  memset(big, 'x', sizeof big);
  if (argc > 2 && !is_full) {
    struct rlimit limit = {atoi(argv[2]), atoi(argv[2])};
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
  }
  pairs = calloc(total, sizeof *pairs);
  for (int i = 0; i < total; i++) {
    if (i % 2 == 0) MUST(pipe(pairs[i]));
    else MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]));
    put(i);
  }
  serve(check);
}
