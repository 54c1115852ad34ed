// Names of threads, of bytes that a reader of /proc may stumble on: brackets, line ends, backslashes, bytes that are not UTF-8, nothing.
// A name is set for a thread (PR_SET_NAME) and is seen in /proc/PID/task/TID/comm.
#include "test.h"

static const char *const names[] = {
    "a) S (b\nc", "\xff\xfe\x80\x01 x", "", "  ) R 1 1 ", "\\n\\\\n\n", "0123456789abcde", "\xc3\xa4\xc3\xb6\xe2\x82",
};
static pid_t tids[COUNT(names)];
static atomic_int ready;

static void *work(void *argument) {
  size_t index = (size_t)argument;
  prctl(PR_SET_NAME, names[index]);
  tids[index] = gettid();
  ready++;
  for (;;) pause();
  return NULL;
}

static void check(void) {
  for (size_t i = 0; i < COUNT(names); i++) {
    char path[64], text[64], wanted[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", tids[i]);
    snprintf(wanted, sizeof wanted, "%s\n", names[i]);
    EXPECT(read_text(path, text, sizeof text) > 0, "thread %zu is gone", i);
    EXPECT(strcmp(text, wanted) == 0, "the name of thread %zu is %s", i, text);
  }
}

static void spoil(void) { prctl(PR_SET_NAME, "another"); }

int main(void) {
  begin();
  tamper = spoil;
  pthread_t thread;
  for (size_t i = 1; i < COUNT(names); i++) pthread_create(&thread, NULL, work, (void *)i);
  MUST(WITHIN(5000, ready == COUNT(names) - 1) ? 0 : -1);
  prctl(PR_SET_NAME, names[0]);
  tids[0] = gettid();
  serve(check);
}
