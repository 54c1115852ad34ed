// An automounter (a child) and its mounts: a direct one that nobody has touched, with the writing end of its pipe closed; an indirect
// one, with something mounted in it and files open there; one whose automounter is dead. After a restore old mounts are as they
// were, and new ones come when they are touched. With "untouched" the kernel does not know yet that the dead one is dead.
#include "mounts.h"
#include <linux/auto_dev-ioctl.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

static pid_t automounter;
static int opened, rounds;

static void put(const char *path, const char *text) {
  int fd = (int)MUST(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640));
  MUST(write(fd, text, strlen(text)));
  close(fd);
}

static bool holds(const char *path, const char *text) {
  char got[256];
  return read_text(path, got, sizeof got) >= 0 && strcmp(got, text) == 0;
}

static bool is_autofs(const char *path) {
  struct statfs stat_of;
  int fd = open(path, O_PATH | O_CLOEXEC);
  bool is = fd >= 0 && fstatfs(fd, &stat_of) == 0 && stat_of.f_type == 0x0187;
  close(fd);
  return is;
}

// Mounts an autofs whose requests come through a new pipe.
static int mount_autofs(const char *place, const char *type, bool keeps_writer) {
  int ends[2];
  char options[128];
  MUST(pipe2(ends, O_CLOEXEC));
  MUST(mkdir(place, 0755));
  snprintf(options, sizeof options, "fd=%d,pgrp=%d,minproto=5,maxproto=5,%s", ends[1], getpgrp(), type);
  MUST(mount("reprise-test", place, "autofs", 0, options));
  if (!keeps_writer) close(ends[1]);
  return ends[0];
}

static void answer(const char *place, unsigned token, unsigned device) {
  int control = (int)MUST(open("/dev/autofs", O_RDONLY | O_CLOEXEC));
  char room[sizeof(struct autofs_dev_ioctl) + 1100];
  struct autofs_dev_ioctl *ask = (struct autofs_dev_ioctl *)room;
  init_autofs_dev_ioctl(ask);
  MUST(getcwd(ask->path, 1000) == NULL ? -1 : 0);
  sprintf(ask->path + strlen(ask->path), "/%s", place);
  ask->size = (unsigned)(sizeof *ask + strlen(ask->path) + 1);
  ask->openmount.devid = device;
  MUST(ioctl(control, AUTOFS_DEV_IOCTL_OPENMOUNT, ask));
  struct autofs_dev_ioctl ready;
  init_autofs_dev_ioctl(&ready);
  ready.ioctlfd = ask->ioctlfd;
  ready.ready.token = token;
  MUST(ioctl(control, AUTOFS_DEV_IOCTL_READY, &ready));
  close(ask->ioctlfd);
  close(control);
}

static void serve_one(int pipe, const char *place) {
  union autofs_v5_packet_union packet;
  if (read(pipe, &packet, sizeof packet) != sizeof packet) _exit(3);
  bool direct = packet.hdr.type == autofs_ptype_missing_direct;
  char target[512], file[600];
  if (direct) strcpy(target, place);
  else snprintf(target, sizeof target, "%s/%s", place, packet.v5_packet.name);
  if (!direct && mkdir(target, 0755) == -1 && errno != EEXIST) MUST(-1);
  MUST(mount("automounted", target, "tmpfs", 0, "size=1m"));
  snprintf(file, sizeof file, "%s/file", target);
  put(file, direct ? "direct" : packet.v5_packet.name);
  answer(place, packet.v5_packet.wait_queue_token, packet.v5_packet.dev);
}

static pid_t start_automounter(bool lives) {
  int ready[2];
  char byte;
  MUST(pipe2(ready, O_CLOEXEC));
  pid_t pid = (pid_t)MUST(fork());
  if (pid == 0) {
    MUST(setpgid(0, 0));
    MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
    struct pollfd pipes[2] = {
        {.fd = mount_autofs(lives ? "direct" : "dead", "direct", false), .events = POLLIN},
        {.fd = lives ? mount_autofs("indirect", "indirect", true) : -1, .events = POLLIN},
    };
    MUST(write(ready[1], "", 1));
    close(ready[0]);
    close(ready[1]);
    while (lives) {
      if (poll(pipes, 2, -1) < 0) continue;
      if (pipes[0].revents != 0) serve_one(pipes[0].fd, "direct");
      if (pipes[1].revents != 0) serve_one(pipes[1].fd, "indirect");
    }
    _exit(0);
  }
  MUST(read(ready[0], &byte, 1) == 1 ? 0 : -1);
  close(ready[0]);
  close(ready[1]);
  if (lives) keep_child(pid);
  else MUST(waitpid(pid, NULL, 0));
  return pid;
}

static void check(void) {
  char text[16] = "", name[32], file[64];
  EXPECT(pread(opened, text, 3, 0) == 3 && strcmp(text, "one") == 0, "an open file reads %s", text);
  EXPECT(holds("indirect/one/file", "one"), "what was mounted is gone");
  snprintf(name, sizeof name, "round%d", ++rounds);
  snprintf(file, sizeof file, "indirect/%s/file", name);
  EXPECT(holds(file, name), "nothing was mounted on %s", file);
  EXPECT(is_autofs("dead"), "the mount without an automounter is gone");
  EXPECT(access("dead/file", F_OK) == -1, "somebody answers for a dead automounter");
  if (!final_round) EXPECT(is_autofs("direct"), "the direct mount is gone");
  else EXPECT(holds("direct/file", "direct"), "nothing was mounted on direct");
}

static void spoil(void) { put("indirect/one/file", "spoilt"); }

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  // Touching a mount whose automounter is dead is a fatal signal otherwise (fs/autofs/waitq.c takes it back too late).
  signal(SIGPIPE, SIG_IGN);
  if (argc < 3) leave_outside(argc < 2 ? "" : argv[1]);
  MUST(mount("dev", "/dev", "tmpfs", 0, "size=1m"));
  MUST(mknod("/dev/autofs", S_IFCHR | 0600, makedev(10, 235)));
  start_automounter(false);
  if (strcmp(argv[2], "untouched") != 0) access("dead/file", F_OK);
  automounter = start_automounter(true);
  opened = (int)MUST(open("indirect/one/file", O_RDONLY | O_CLOEXEC));
  serve(check);
}
