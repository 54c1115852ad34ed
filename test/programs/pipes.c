// Pipes: data inside, size, O_NONBLOCK on one end, an end that is closed everywhere (end of file, EPIPE),
// and pipes whose ends are in two processes. Run with "owned" one of them belongs to another user. Run with "packets" one of them is in packet mode (O_DIRECT), whose
// borders the kernel shows to nobody: a dump refuses it.
#include "test.h"

enum { DATA, NO_WRITER, NO_READER, PACKETS, TO_CHILD, FROM_CHILD, MANY };
static int pipes[MANY][2];
static int twin;
static bool packets, owned;
static pid_t child;
static char big[100000];

static void put(int which, const char *text) {
  EXPECT(write(pipes[which][1], text, strlen(text)) == (ssize_t)strlen(text), "pipe %d: %m", which);
}

static void expect_text(int which, const char *wanted) {
  char text[64] = "";
  ssize_t got = read(pipes[which][0], text, sizeof text - 1);
  EXPECT(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "pipe %d gives %zd: %s", which,
         got, text);
}

static void child_setup(void) {
  close(pipes[TO_CHILD][1]);
  close(pipes[FROM_CHILD][0]);
}

static void child_check(void) {
  expect_text(TO_CHILD, "waits for you");
  put(FROM_CHILD, "answer");
}

static void check_owner(void) {
  struct stat status;
  EXPECT_EQ(fstat(pipes[TO_CHILD][1], &status), 0);
  EXPECT(status.st_uid == 65534 && status.st_gid == 1 && (status.st_mode & 07777) == 0640, "the pipe is %d:%d %o",
         (int)status.st_uid, (int)status.st_gid, status.st_mode);
  EXPECT_EQ(fstat(pipes[DATA][1], &status), 0);
  EXPECT(status.st_uid == 0 && (status.st_mode & 07777) == 0600, "the other pipe is %o", status.st_mode);
}

static void check(void) {
  if (owned) check_owner();
  static char now[sizeof big];
  size_t length = 0;
  ssize_t got;
  EXPECT_EQ(fcntl(pipes[DATA][0], F_GETPIPE_SZ), 1 << 18);
  EXPECT(fcntl(pipes[DATA][0], F_GETFL) & O_NONBLOCK, "the reading end blocks");
  EXPECT((fcntl(pipes[DATA][1], F_GETFL) & O_NONBLOCK) == 0, "the writing end does not block");
  while ((got = read(pipes[DATA][0], now + length, sizeof now - length)) > 0) length += got;
  EXPECT(length == sizeof big && memcmp(big, now, length) == 0, "%zu bytes were inside", length);
  EXPECT(read(pipes[DATA][0], now, 1) == -1 && errno == EAGAIN, "the pipe is not just empty: %m");
  EXPECT(write(twin, big, sizeof big) == sizeof big, "the duplicate cannot be written: %m");
  expect_text(NO_WRITER, "last words");
  EXPECT(read(pipes[NO_WRITER][0], now, 1) == 0, "no end of file");
  EXPECT(write(pipes[NO_READER][1], "x", 1) == -1 && errno == EPIPE, "no EPIPE: %m");
  expect_text(PACKETS, packets ? "one" : "onetwo");
  if (packets) expect_text(PACKETS, "two");
  put(PACKETS, "one");
  put(PACKETS, "two");
  ask_child(child);
  expect_text(FROM_CHILD, "answer");
  put(TO_CHILD, "waits for you");
  // For the next round: a new pipe without writer, under the same number.
  int fresh[2];
  EXPECT(pipe(fresh) == 0 && dup2(fresh[0], pipes[NO_WRITER][0]) >= 0, "pipe: %m");
  EXPECT(write(fresh[1], "last words", 10) == 10, "write: %m");
  close(fresh[0]);
  close(fresh[1]);
}

static void lose_byte(void) {
  char byte;
  MUST(read(pipes[DATA][0], &byte, 1));
}

int main(int argc, char **argv) {
  begin();
  packets = argc > 1 && strcmp(argv[1], "packets") == 0;
  signal(SIGPIPE, SIG_IGN);
  fill(big, sizeof big, 12);
  for (int i = 0; i < MANY; i++) MUST(pipe2(pipes[i], i == PACKETS && packets ? O_DIRECT : 0));
  // Closed before the child is made, so that it does not hold them.
  put(NO_WRITER, "last words");
  close(pipes[NO_WRITER][1]);
  close(pipes[NO_READER][0]);
  child = start_child(child_setup, child_check);
  close(pipes[TO_CHILD][0]);
  close(pipes[FROM_CHILD][1]);
  put(TO_CHILD, "waits for you");
  MUST(fcntl(pipes[DATA][0], F_SETPIPE_SZ, 1 << 18));
  MUST(fcntl(pipes[DATA][0], F_SETFL, O_NONBLOCK));
  MUST(write(pipes[DATA][1], big, sizeof big));
  owned = argc > 1 && strcmp(argv[1], "owned") == 0;
  if (owned) MUST(fchown(pipes[TO_CHILD][1], 65534, 1));
  if (owned) MUST(fchmod(pipes[TO_CHILD][1], 0640));
  twin = MUST(dup(pipes[DATA][1]));
  put(PACKETS, "one");
  put(PACKETS, "two");
  tamper = lose_byte;
  serve(check);
}
