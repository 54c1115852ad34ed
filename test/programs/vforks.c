// Makes children by vfork, one after the other, which take some milliseconds before they call exec (the first argument): a dump has to
// come between. With "stuck" there is one more that never does, until this process is asked to check.
#include "test.h"
#include <spawn.h>

static int slow_ms = 20;
static int made;
static pid_t stuck;

// vfork's own way, with a child that only makes system calls.
static pid_t vfork_child(long ms) {
  struct timespec delay = {ms / 1000, ms % 1000 * 1000000};
  pid_t pid = vfork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    nanosleep(&delay, NULL);
    execl("/bin/true", "true", NULL);
    _exit(127);
  }
  return (pid_t)MUST(pid);
}

static void reap(pid_t pid) {
  int status = -1;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with 0x%x", pid, status);
}

static void tick(void) {
  reap(vfork_child(slow_ms));
  made++;
}

static void *stay(void *nothing) {
  stuck = vfork_child(3600 * 1000);
  return nothing;
}

static void check(void) {
  int before = made;
  tick();
  EXPECT_EQ(made, before + 1);
  extern char **environ;
  char *arguments[] = {"true", NULL};
  pid_t spawned;
  EXPECT_EQ(posix_spawn(&spawned, "/bin/true", NULL, NULL, arguments, environ), 0);
  reap(spawned);
}

int main(int argc, char **argv) {
  begin();
  if (argc > 1 && strcmp(argv[1], "stuck") == 0) {
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, stay, NULL) == 0 ? 0 : -1);
    sleep_ms(50);
    serve(check);
  }
  if (argc > 1) slow_ms = atoi(argv[1]);
  serve_ticking(check, 1, tick);
}
