// Locks on files: POSIX ranges of two processes, OFD and flock locks of an open file that a child shares, a lease, and a
// lease that is being broken. A process without locks tries each from outside.
#include "test.h"
#include <sys/file.h>

#ifndef F_OFD_SETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

static int posix, ofd, whole, lease, breaking;
static pid_t child;

static void lock(int fd, int command, int type, off_t start, off_t length) {
  struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
  MUST(fcntl(fd, command, &range));
}

// Who holds `start` of a file against a write lock: its pid, -1 for an open file, 0 for nobody.
static pid_t holder(const char *name, off_t start) {
  int fd = open(name, O_RDWR);
  struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = 1};
  EXPECT(fd >= 0, "cannot open %s: %m", name);
  // Asked by an open file of its own, so that our own locks are in the way, too.
  EXPECT(fcntl(fd, F_OFD_GETLK, &range) == 0, "cannot ask for the locks of %s: %m", name);
  // Closing any descriptor of the file would drop the POSIX locks: it is left open until the process ends.
  return range.l_type == F_UNLCK ? 0 : range.l_pid;
}

// In a process of its own, whose descriptors do not matter.
static long from_outside(long (*ask)(void)) {
  int pipes[2], status;
  long answer = -2;
  MUST(pipe(pipes));
  pid_t pid = MUST(fork());
  if (pid == 0) {
    answer = ask();
    if (write(pipes[1], &answer, sizeof answer) != sizeof answer) _exit(1);
    _exit(0);
  }
  EXPECT(read(pipes[0], &answer, sizeof answer) == sizeof answer, "no answer from outside");
  close(pipes[0]);
  close(pipes[1]);
  waitpid(pid, &status, 0);
  return answer;
}

static long at_10(void) { return holder("posix", 10); }
static long at_50(void) { return holder("posix", 50); }
static long at_90(void) { return holder("posix", 90); }
static long at_end(void) { return holder("posix", 1L << 40); }
static long ofd_at_5(void) { return holder("ofd", 5); }
static long ofd_at_15(void) { return holder("ofd", 15); }
static long try_whole(void) {
  int fd = open("whole", O_RDWR);
  bool shared = flock(fd, LOCK_SH | LOCK_NB) == 0;
  return shared ? flock(fd, LOCK_EX | LOCK_NB) == 0 ? 2 : 1 : 0;
}
static long open_to_write(void) {
  return open("lease", O_WRONLY | O_NONBLOCK) >= 0 ? 0 : errno;
}

static void child_setup(void) { lock(posix, F_SETLK, F_WRLCK, 80, 20); }
static void child_check(void) {
  EXPECT(flock(whole, LOCK_SH | LOCK_NB) == 0, "the child does not share the lock: %m");
}

static void check(void) {
  EXPECT_EQ(from_outside(at_10), getpid());
  EXPECT_EQ(from_outside(at_50), 0);
  EXPECT_EQ(from_outside(at_90), child);
  EXPECT_EQ(from_outside(at_end), getpid());
  EXPECT_EQ(from_outside(ofd_at_5), -1);
  EXPECT_EQ(from_outside(ofd_at_15), 0);
  EXPECT_EQ(from_outside(try_whole), 1);
  EXPECT_EQ(fcntl(lease, F_GETLEASE), F_RDLCK);
  EXPECT_EQ(fcntl(breaking, F_GETLEASE), F_UNLCK);
  EXPECT(open("breaking", O_WRONLY | O_NONBLOCK) == -1 && errno == EAGAIN,
         "the lease that was being broken is gone");
  EXPECT_EQ(fcntl(breaking, F_GETOWN), getpid());
  // The signal for it was taken before the checkpoint, and there is no second one.
  sigset_t pending;
  sigpending(&pending);
  EXPECT(!sigismember(&pending, SIGIO), "a signal for the broken lease came again");
  ask_child(child);
}

static void unlock(void) { lock(posix, F_SETLK, F_UNLCK, 10, 1); }

static int make(const char *name, int flags) {
  close(MUST(open(name, O_WRONLY | O_CREAT, 0644)));
  return MUST(open(name, flags));
}

int main(void) {
  begin();
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGIO);
  sigprocmask(SIG_BLOCK, &blocked, NULL);
  posix = make("posix", O_RDWR);
  ofd = make("ofd", O_RDWR);
  whole = make("whole", O_RDWR);
  lease = make("lease", O_RDONLY);
  breaking = make("breaking", O_RDONLY);
  lock(posix, F_SETLK, F_WRLCK, 0, 20);
  lock(posix, F_SETLK, F_RDLCK, 1000, 0);
  lock(ofd, F_OFD_SETLK, F_RDLCK, 0, 10);
  MUST(flock(whole, LOCK_SH));
  MUST(fcntl(lease, F_SETLEASE, F_RDLCK));
  MUST(fcntl(breaking, F_SETLEASE, F_RDLCK));
  EXPECT(from_outside(open_to_write) == EAGAIN, "the lease is not in the way");
  // Somebody opens for writing: first signal. It is taken here.
  MUST(fcntl(lease, F_SETLEASE, F_UNLCK));
  MUST(fcntl(lease, F_SETLEASE, F_RDLCK));
  EXPECT(open("breaking", O_WRONLY | O_NONBLOCK) == -1 && errno == EAGAIN, "not broken");
  struct timespec now = {0};
  while (sigtimedwait(&blocked, NULL, &now) == SIGIO) {}
  child = start_child(child_setup, child_check);
  tamper = unlock;
  serve(check);
}
