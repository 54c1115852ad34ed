// Shared by every test program: the protocol (README.md), expectations that keep the first failure,
// children that can be asked, and small readers of /proc. It depends on as little kernel state as it
// can: signals, the current directory and standard output. So a program fails for its own subject.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SHARED_HELPER static __attribute__((unused))
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define KIB 1024UL
#define MIB (1024UL * KIB)
#define PAGE 4096UL

// ---- expectations: the first failure is kept for good, in whichever thread it happens

static atomic_int failure_taken;
static char failure_text[512];

SHARED_HELPER __attribute__((format(printf, 3, 4))) void record_failure(const char *file, int line,
                                                                        const char *format, ...) {
  if (atomic_exchange(&failure_taken, 1)) return;
  char reason[400];
  va_list list;
  va_start(list, format);
  vsnprintf(reason, sizeof reason, format, list);
  va_end(list);
  snprintf(failure_text, sizeof failure_text, "%s:%d: %s", file, line, reason);
}

#define EXPECT(condition, ...)                                                   \
  do {                                                                           \
    if (!(condition)) record_failure(__FILE_NAME__, __LINE__, __VA_ARGS__);      \
  } while (0)
#define EXPECT_EQ(got, wanted)                                                   \
  do {                                                                           \
    long long got_ = (long long)(got), wanted_ = (long long)(wanted);            \
    EXPECT(got_ == wanted_, "%s is %lld, wanted %lld", #got, got_, wanted_);     \
  } while (0)

// For set-up only: a call that cannot fail on a sound system. Gives the call's result.
#define MUST(call)                                                               \
  ({                                                                             \
    long must_ = (long)(call);                                                   \
    if (must_ == -1) {                                                           \
      dprintf(1, "fail: set-up: %s:%d: %s: %m\n", __FILE_NAME__, __LINE__, #call); \
      _exit(2);                                                                  \
    }                                                                            \
    must_;                                                                       \
  })

// ---- time

SHARED_HELPER int64_t now_ms(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

SHARED_HELPER void sleep_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&t, &t) == -1 && errno == EINTR) continue;
}

// Waits up to `ms` for a condition, less when the verdict is known already; gives whether it came true.
#define WITHIN(ms, condition)                                                    \
  ({                                                                             \
    int64_t end_ = now_ms(CLOCK_MONOTONIC) + (failure_taken ? 300 : (ms));       \
    bool came_;                                                                  \
    while (!(came_ = (condition)) && now_ms(CLOCK_MONOTONIC) < end_) sleep_ms(1); \
    came_;                                                                       \
  })

// ---- memory patterns

SHARED_HELPER uint64_t pattern_word(uint64_t seed, size_t index) {
  uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15ULL + index * 0xbf58476d1ce4e5b9ULL;
  return x ^ (x >> 29);
}

// `size` is a multiple of 8.
SHARED_HELPER void fill(void *start, size_t size, uint64_t seed) {
  uint64_t *words = start;
  for (size_t i = 0; i < size / 8; i++) words[i] = pattern_word(seed, i);
}

SHARED_HELPER bool filled(const void *start, size_t size, uint64_t seed) {
  const uint64_t *words = start;
  for (size_t i = 0; i < size / 8; i++)
    if (words[i] != pattern_word(seed, i)) return false;
  return true;
}

SHARED_HELPER bool all_zero(const void *start, size_t size) {
  const unsigned char *bytes = start;
  for (size_t i = 0; i < size; i++)
    if (bytes[i] != 0) return false;
  return true;
}

SHARED_HELPER void *map_anon(size_t size, int protection) {
  return (void *)MUST(mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

// ---- texts of /proc and notes between processes (files in the current directory)

// Reads a whole small file; gives its length or -1. The text always ends in a zero byte.
SHARED_HELPER ssize_t read_text(const char *path, char *text, size_t size) {
  text[0] = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  size_t length = 0;
  ssize_t got;
  while (length < size - 1 && (got = read(fd, text + length, size - 1 - length)) > 0) length += got;
  close(fd);
  text[length] = 0;
  return (ssize_t)length;
}

// The value of a `Name:\tvalue` line, for /proc/PID/status and fdinfo; "" when there is none.
SHARED_HELPER void field_of(const char *path, const char *name, char *value, size_t size) {
  char text[8192], wanted[64];
  value[0] = 0;
  read_text(path, text, sizeof text);
  size_t length = (size_t)snprintf(wanted, sizeof wanted, "%s:", name);
  for (char *line = text; line != NULL && *line; line = strchr(line, '\n'), line += line != NULL) {
    if (strncmp(line, wanted, length) != 0) continue;
    line += length + strspn(line + length, " \t");
    snprintf(value, size, "%.*s", (int)strcspn(line, "\n"), line);
    return;
  }
}

// A line of the /proc/self/smaps entry that covers the address; "" when there is none.
SHARED_HELPER void smaps_field(const void *address, const char *name, char *value, size_t size) {
  char line[1024];
  bool inside = false;
  size_t length = strlen(name);
  FILE *file = fopen("/proc/self/smaps", "re");
  value[0] = 0;
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    unsigned long start, end;
    if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
      inside = (uintptr_t)address >= start && (uintptr_t)address < end;
    else if (inside && strncmp(line, name, length) == 0 && line[length] == ':') {
      char *text = line + length + 1;
      text += strspn(text, " \t");
      snprintf(value, size, "%.*s", (int)strcspn(text, "\n"), text);
    }
  }
  if (file != NULL) fclose(file);
}

// The start of the /proc/self/maps line that covers the address: "rwxp" and the like, or "none".
SHARED_HELPER void maps_permissions(const void *address, char permissions[5]) {
  char line[1024];
  FILE *file = fopen("/proc/self/maps", "re");
  strcpy(permissions, "none");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    unsigned long start, end;
    char found[5];
    if (sscanf(line, "%lx-%lx %4s", &start, &end, found) != 3) continue;
    if ((uintptr_t)address >= start && (uintptr_t)address < end) strcpy(permissions, found);
  }
  if (file != NULL) fclose(file);
}

// State letter, parent and the rest of /proc/PID/stat; gives '?' when the process is gone.
SHARED_HELPER char task_state(pid_t pid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  if (read_text(path, text, sizeof text) <= 0) return '?';
  char *end = strrchr(text, ')');
  return end == NULL ? '?' : end[2];
}

SHARED_HELPER void tell(const char *name, const char *text) {
  char temporary[128];
  snprintf(temporary, sizeof temporary, "%s.new", name);
  int fd = (int)MUST(open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  MUST(write(fd, text, strlen(text)));
  close(fd);
  MUST(rename(temporary, name));
}

// Takes a note away; gives whether it came within 10 s.
SHARED_HELPER bool hear(const char *name, char *text, size_t size) {
  bool came = WITHIN(10000, access(name, F_OK) == 0);
  if (came) read_text(name, text, size);
  unlink(name);
  return came;
}

SHARED_HELPER void tell_number(const char *name, long number) {
  char text[32];
  snprintf(text, sizeof text, "%ld", number);
  tell(name, text);
}

SHARED_HELPER long hear_number(const char *name) {
  char text[32];
  return MUST(hear(name, text, sizeof text) ? atol(text) : -1);
}

// ---- the protocol

enum { TIMED_OUT, CHECK, FINISH };
static volatile sig_atomic_t check_wanted, finish_wanted;
static bool final_round;          // the check that runs is the last one
static void (*tamper)(void);      // what BREAK=1 does to the program's own state before the check
static struct {
  pid_t pid;
  bool serves; // answers to SIGTERM; others are only good for SIGKILL
} kept_children[4096]; // ended and reaped when the program ends
static int kept_count;

static void on_request(int signal) {
  if (signal == SIGUSR1) check_wanted = 1;
  else finish_wanted = 1;
}

// First call of every main: requests are blocked but in the wait, so that none is lost; descriptors that whoever
// started us has left open are no part of the test.
SHARED_HELPER void begin(void) {
  close_range(3, ~0U, 0);
  sigset_t requests;
  sigemptyset(&requests);
  sigaddset(&requests, SIGUSR1);
  sigaddset(&requests, SIGTERM);
  sigprocmask(SIG_BLOCK, &requests, NULL);
  struct sigaction action = {.sa_handler = on_request};
  sigaction(SIGUSR1, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
}

// Waits for a request; `ms` below 0 is for ever.
SHARED_HELPER int wait_request(long ms) {
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  sigdelset(&mask, SIGUSR1);
  sigdelset(&mask, SIGTERM);
  struct timespec timeout = {ms / 1000, ms % 1000 * 1000000};
  while (!check_wanted && !finish_wanted) {
    if (ms < 0) sigsuspend(&mask);
    else if (ppoll(NULL, 0, &timeout, &mask) == 0) return TIMED_OUT;
  }
  if (check_wanted) {
    check_wanted = 0;
    return CHECK;
  }
  return FINISH;
}

SHARED_HELPER void keep_child(pid_t pid) { kept_children[kept_count++].pid = pid; }

// The child is reaped already.
SHARED_HELPER void forget_child(pid_t pid) {
  for (int i = 0; i < kept_count; i++)
    if (kept_children[i].pid == pid) kept_children[i] = kept_children[--kept_count];
}

SHARED_HELPER void end_children(void) {
  for (int i = 0; i < kept_count; i++)
    kill(kept_children[i].pid, kept_children[i].serves ? SIGTERM : SIGKILL);
  for (int i = 0; i < kept_count; i++) {
    pid_t pid = kept_children[i].pid;
    if (WITHIN(5000, waitpid(pid, NULL, WNOHANG) != 0)) continue;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
  }
  kept_count = 0;
}

SHARED_HELPER void check_once(void (*check)(void)) {
  static bool tampered;
  if (tamper != NULL && !tampered && getenv("BREAK") != NULL) {
    tampered = true;
    tamper();
  }
  check();
}

// Says ready, calls `tick` every `ms` (not at all below 0) and `check` on request; never comes back.
SHARED_HELPER _Noreturn void serve_ticking(void (*check)(void), long ms, void (*tick)(void)) {
  dprintf(1, "ready\n");
  for (int round = 1;;) {
    int request = wait_request(ms);
    if (request == TIMED_OUT) {
      tick();
      continue;
    }
    final_round = request == FINISH;
    check_once(check);
    if (final_round) end_children();
    if (failure_taken) dprintf(1, "fail: %s\n", failure_text);
    else if (final_round) dprintf(1, "pass\n");
    else dprintf(1, "ok %d\n", round++);
    if (final_round) _exit(failure_taken ? 1 : 0);
  }
}

SHARED_HELPER _Noreturn void serve(void (*check)(void)) { serve_ticking(check, -1, NULL); }

// ---- children that take part in the check

// Makes a child that runs `setup` and then `check` whenever the parent asks; either may be NULL.
SHARED_HELPER pid_t start_child(void (*setup)(void), void (*check)(void)) {
  char note[64];
  pid_t pid = (pid_t)MUST(fork());
  if (pid == 0) {
    kept_count = 0;
    check_wanted = finish_wanted = 0;
    if (setup != NULL) setup();
    snprintf(note, sizeof note, "verdict.%d", getpid());
    tell(note, "ready");
    for (;;) {
      if (wait_request(-1) == FINISH) {
        end_children();
        _exit(0);
      }
      if (check != NULL) check_once(check);
      tell(note, failure_taken ? failure_text : "ok");
    }
  }
  kept_children[kept_count].serves = true;
  keep_child(pid);
  snprintf(note, sizeof note, "verdict.%d", pid);
  char text[512];
  MUST(hear(note, text, sizeof text) ? 0 : -1);
  return pid;
}

// Lets the child check itself; its failure becomes ours.
SHARED_HELPER void ask_child(pid_t pid) {
  char note[64], text[512];
  snprintf(note, sizeof note, "verdict.%d", pid);
  EXPECT(kill(pid, SIGUSR1) == 0, "child %d is gone: %m", pid);
  EXPECT(WITHIN(10000, access(note, F_OK) == 0 || task_state(pid) == 'Z'), "child %d is silent", pid);
  bool came = access(note, F_OK) == 0 && hear(note, text, sizeof text);
  EXPECT(came, "child %d does not answer", pid);
  EXPECT(!came || strcmp(text, "ok") == 0, "child %d: %s", pid, text);
}

// Ends an asked child by SIGTERM and reaps it.
SHARED_HELPER void end_child(pid_t pid) {
  int status = -1;
  kill(pid, SIGTERM);
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with 0x%x", pid, status);
  forget_child(pid);
}

// For a child that only exists: waits for SIGKILL.
SHARED_HELPER _Noreturn void idle(void) {
  for (;;) pause();
}
