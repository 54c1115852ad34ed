// POSIX message queues: one with messages of several priorities, open twice; one that is removed and lives as long as it is open; one
// for sending only, whose content nobody here can read; one whose next message is told by a signal with a value.
#include "test.h"
#include <mqueue.h>

static mqd_t both, nonblocking, removed, sender, told;
static char name[64], send_name[64], told_name[64];
static sigset_t telling;

static void expect_message(mqd_t queue, unsigned priority, const char *text) {
  char got[128] = "";
  unsigned seen = 999;
  struct timespec past = {0, 0};
  ssize_t length = mq_timedreceive(queue, got, sizeof got, &seen, &past);
  EXPECT(length == (ssize_t)strlen(text) && strncmp(got, text, strlen(text)) == 0 && seen == priority,
         "message of priority %u is %s (%zd), wanted %u %s: %m", seen, got, length, priority, text);
}

static void *const value = (void *)0x123456789abcUL;

static void want_to_be_told(void) {
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_ptr = value};
  EXPECT(mq_notify(told, &event) == 0, "mq_notify: %m");
}

static void check_told(void) {
  struct timespec soon = {5, 0};
  siginfo_t info = {0};
  mq_send(told, "news", 4, 0);
  EXPECT(sigtimedwait(&telling, &info, &soon) == SIGRTMIN + 1, "nobody is told: %m");
  EXPECT(info.si_code == SI_MESGQ && info.si_value.sival_ptr == value, "told with %d and %p", info.si_code, info.si_value.sival_ptr);
  expect_message(told, 0, "news");
  want_to_be_told();
}

static void check(void) {
  struct mq_attr attributes;
  EXPECT(mq_getattr(both, &attributes) == 0, "mq_getattr: %m");
  EXPECT_EQ(attributes.mq_maxmsg, 5);
  EXPECT_EQ(attributes.mq_msgsize, 128);
  EXPECT_EQ(attributes.mq_curmsgs, 3);
  EXPECT_EQ(attributes.mq_flags, 0);
  EXPECT(mq_getattr(nonblocking, &attributes) == 0, "mq_getattr: %m");
  EXPECT_EQ(attributes.mq_flags, O_NONBLOCK);
  expect_message(both, 7, "urgent");
  expect_message(nonblocking, 1, "first");
  expect_message(both, 1, "second");
  char none[128];
  EXPECT(mq_receive(nonblocking, none, sizeof none, NULL) == -1 && errno == EAGAIN, "empty: %m");
  mq_send(both, "first", 5, 1);
  mq_send(both, "urgent", 6, 7);
  mq_send(both, "second", 6, 1);
  expect_message(removed, 0, "kept");
  mq_send(removed, "kept", 4, 0);
  char link[128] = "", path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", removed);
  EXPECT(readlink(path, link, sizeof link - 1) > 0 && strstr(link, "(deleted)"), "removed is %s", link);
  EXPECT(mq_receive(sender, none, sizeof none, NULL) == -1 && errno == EBADF, "sender reads: %m");
  check_told();
  struct stat status;
  EXPECT(fstat(both, &status) == 0 && (status.st_mode & 0777) == 0620, "mode %o", status.st_mode);
  if (final_round) {
    mq_unlink(name);
    mq_unlink(send_name);
    mq_unlink(told_name);
  }
}

static void spoil(void) { mq_send(both, "more", 4, 9); }

int main(void) {
  begin();
  tamper = spoil;
  struct mq_attr attributes = {.mq_maxmsg = 5, .mq_msgsize = 128};
  snprintf(name, sizeof name, "/reprise-%d", getpid());
  snprintf(send_name, sizeof send_name, "/reprise-send-%d", getpid());
  umask(0);
  both = (mqd_t)MUST(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0620, &attributes));
  nonblocking = (mqd_t)MUST(mq_open(name, O_RDONLY | O_NONBLOCK));
  sender = (mqd_t)MUST(mq_open(send_name, O_WRONLY | O_CREAT | O_EXCL, 0600, &attributes));
  removed = (mqd_t)MUST(mq_open("/reprise-removed", O_RDWR | O_CREAT, 0600, &attributes));
  MUST(mq_unlink("/reprise-removed"));
  snprintf(told_name, sizeof told_name, "/reprise-told-%d", getpid());
  told = (mqd_t)MUST(mq_open(told_name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes));
  sigemptyset(&telling);
  sigaddset(&telling, SIGRTMIN + 1);
  MUST(sigprocmask(SIG_BLOCK, &telling, NULL));
  want_to_be_told();
  MUST(mq_send(both, "first", 5, 1));
  MUST(mq_send(both, "urgent", 6, 7));
  MUST(mq_send(both, "second", 6, 1));
  MUST(mq_send(removed, "kept", 4, 0));
  serve(check);
}
