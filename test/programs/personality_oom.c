// The personality (here: addresses are not randomized; a child says UNAME26 as well) and the
// adjustment of the out-of-memory score.
#include "test.h"
#include <sys/personality.h>
#include <sys/utsname.h>

enum { ASK = -1 };
static pid_t child;

static void expect_state(unsigned long flags, int score) {
  char text[64];
  EXPECT((unsigned long)personality(ASK) == flags, "the personality is %x", personality(ASK));
  read_text("/proc/self/oom_score_adj", text, sizeof text);
  EXPECT(atoi(text) == score, "the score's adjustment is %s", text);
}

static void set_score(const char *score) {
  int fd = MUST(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  MUST(write(fd, score, strlen(score)));
  close(fd);
}

static void child_setup(void) {
  MUST(personality(ADDR_NO_RANDOMIZE | UNAME26));
  set_score("700");
}

static void child_check(void) {
  struct utsname name;
  uname(&name);
  expect_state(ADDR_NO_RANDOMIZE | UNAME26, 700);
  EXPECT(strncmp(name.release, "2.6.", 4) == 0, "the release is %s", name.release);
}

static void check(void) {
  expect_state(ADDR_NO_RANDOMIZE, 300);
  ask_child(child);
}

static void other_personality(void) { personality(0); }

int main(void) {
  begin();
  MUST(personality(ADDR_NO_RANDOMIZE));
  set_score("300");
  child = start_child(child_setup, child_check);
  tamper = other_personality;
  serve(check);
}
