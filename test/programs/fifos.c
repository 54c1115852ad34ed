// Named pipes: data inside, one end or both ends open, opened for reading and writing at once, size, and a
// FIFO between two processes.
#include "test.h"

static int reader, writer, both, lonely, from_child;
static pid_t child;

static void expect_text(int fd, const char *wanted) {
  char text[64] = "";
  ssize_t got = read(fd, text, sizeof text - 1);
  EXPECT(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "read %zd: %s, wanted %s", got,
         text, wanted);
}

static void put(int fd, const char *text) {
  EXPECT(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write of %s: %m", text);
}

static int child_end;
static void child_setup(void) { child_end = MUST(open("answers", O_WRONLY)); }
static void child_check(void) { put(child_end, "answer"); }

static void check(void) {
  struct stat by_name, by_fd;
  char byte;
  expect_text(reader, "in the fifo");
  EXPECT(read(reader, &byte, 1) == -1 && errno == EAGAIN, "it is not just empty: %m");
  put(writer, "in the fifo");
  expect_text(both, "to myself");
  put(both, "to myself");
  EXPECT((fcntl(both, F_GETFL) & O_ACCMODE) == O_RDWR, "flags %o", fcntl(both, F_GETFL));
  EXPECT((fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK), "flags %o",
         fcntl(reader, F_GETFL));
  EXPECT((fcntl(writer, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_WRONLY, "flags %o",
         fcntl(writer, F_GETFL));
  EXPECT_EQ(fcntl(writer, F_GETPIPE_SZ), 1 << 17);
  EXPECT(read(lonely, &byte, 1) == 0, "a FIFO without writer does not say end of file: %m");
  EXPECT(fstat(reader, &by_fd) == 0 && stat("first", &by_name) == 0, "stat: %m");
  EXPECT(by_fd.st_ino == by_name.st_ino && S_ISFIFO(by_fd.st_mode), "it is another file");
  // Who opens it by its name gets the same pipe.
  int third = open("second", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  expect_text(third, "to myself");
  put(both, "to myself");
  close(third);
  ask_child(child);
  expect_text(from_child, "answer");
}

static void add(void) { put(both, "more"); }

int main(void) {
  begin();
  tamper = add;
  const char *const names[] = {"first", "second", "third", "answers"};
  for (size_t i = 0; i < COUNT(names); i++) MUST(mkfifo(names[i], 0600));
  from_child = MUST(open("answers", O_RDONLY | O_NONBLOCK));
  child = start_child(child_setup, child_check);
  reader = MUST(open("first", O_RDONLY | O_NONBLOCK));
  writer = MUST(open("first", O_WRONLY));
  MUST(fcntl(writer, F_SETPIPE_SZ, 1 << 17));
  both = MUST(open("second", O_RDWR));
  lonely = MUST(open("third", O_RDONLY | O_NONBLOCK));
  put(writer, "in the fifo");
  put(both, "to myself");
  serve(check);
}
