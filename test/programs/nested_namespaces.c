// Children in UTS, IPC and cgroup namespaces of their own, below a program that stays where it was started (or, with the argument
// own, in further ones): names, settings, System V objects with equal ids in two namespaces, message queues of equal names.
#include "test.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/utsname.h>

static pid_t children[2], grandchild;
static char name[16];
static int seed, segment, removed, queue, semaphores;
static uint64_t *attached, *kept;
static mqd_t named, unnamed;
static const char *const kinds[3] = {"uts", "ipc", "cgroup"};

#define KEY 0x5e5e
struct message {
  long type;
  char text[8];
};

static ino_t inode_of(pid_t pid, const char *kind) {
  char path[64];
  struct stat now = {0};
  snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, kind);
  EXPECT(stat(path, &now) == 0, "%s: %m", path);
  return now.st_ino;
}

static void expect_message(mqd_t open_queue, const char *wanted) {
  char text[64] = "";
  unsigned priority = 0;
  ssize_t length = mq_receive(open_queue, text, sizeof text, &priority);
  EXPECT(length == 6 && strcmp(text, wanted) == 0 && priority == 3, "a queue has '%s' (%zd)", text, length);
  EXPECT(mq_send(open_queue, text, 6, 3) == 0, "mq_send: %m");
}

static void look(void) {
  struct utsname names;
  uname(&names);
  EXPECT(strcmp(names.nodename, name) == 0, "the host name is %s", names.nodename);
  char text[64];
  read_text("/proc/sys/kernel/msgmax", text, sizeof text);
  EXPECT_EQ(atoi(text), 5000 + seed);
  EXPECT_EQ(shmget(KEY, 0, 0), segment);
  EXPECT(filled(attached, 2 * PAGE, seed), "a segment has another content");
  EXPECT(filled(kept, PAGE, seed + 10), "a removed segment has another content");
  struct shmid_ds status;
  EXPECT(shmctl(removed, IPC_STAT, &status) == 0 && (status.shm_perm.mode & SHM_DEST) != 0, "not removed");
  EXPECT_EQ(semctl(semaphores, 1, GETVAL), 30 + seed);
  struct message message = {0};
  EXPECT(msgrcv(queue, &message, sizeof message.text, 0, IPC_NOWAIT) == 2 && message.text[0] == 'a' + seed,
         "the queue has '%s'", message.text);
  EXPECT(msgsnd(queue, &message, 2, IPC_NOWAIT) == 0, "msgsnd: %m");
  char wanted[6] = "named0";
  snprintf(wanted, sizeof wanted, "nam%d%c", seed, 'x');
  expect_message(named, wanted);
  wanted[0] = 'N';
  expect_message(unnamed, wanted);
  EXPECT(mq_open("/nested-gone", O_RDONLY) == (mqd_t)-1 && errno == ENOENT, "a removed queue is there: %m");
  for (int i = 0; i < 3; i++)
    EXPECT(inode_of(getpid(), kinds[i]) != inode_of(getppid(), kinds[i]), "the parent has the same %s", kinds[i]);
}

static void look_as_grandchild(void) {
  struct utsname names;
  uname(&names);
  EXPECT(strcmp(names.nodename, name) == 0, "the host name is %s", names.nodename);
  attached[PAGE / 8] ^= 1;
  for (int i = 0; i < 3; i++)
    EXPECT(inode_of(getpid(), kinds[i]) == inode_of(getppid(), kinds[i]), "the parent has another %s", kinds[i]);
}

static void check_child(void) {
  look();
  // What one task writes the other sees.
  uint64_t before = attached[PAGE / 8];
  ask_child(grandchild);
  EXPECT_EQ(attached[PAGE / 8], before ^ 1);
  attached[PAGE / 8] = before;
}

static mqd_t make_queue(const char *path, char first) {
  struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 64};
  char text[6];
  snprintf(text, sizeof text, "%cam%d%c", first, seed, 'x');
  mqd_t made = (mqd_t)MUST(mq_open(path, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes));
  MUST(mq_send(made, text, 6, 3));
  return made;
}

static void setup_child(void) {
  MUST(unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP));
  snprintf(name, sizeof name, "nested-%d", seed);
  MUST(sethostname(name, strlen(name)));
  FILE *file = fopen("/proc/sys/kernel/msgmax", "we");
  fprintf(file, "%d", 5000 + seed);
  fclose(file);
  segment = (int)MUST(shmget(KEY, 2 * PAGE, IPC_CREAT | IPC_EXCL | 0600));
  attached = shmat(segment, NULL, 0);
  fill(attached, 2 * PAGE, seed);
  removed = (int)MUST(shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600));
  kept = shmat(removed, NULL, 0);
  fill(kept, PAGE, seed + 10);
  MUST(shmctl(removed, IPC_RMID, NULL));
  semaphores = (int)MUST(semget(KEY, 2, IPC_CREAT | 0600));
  MUST(semctl(semaphores, 1, SETVAL, 30 + seed));
  queue = (int)MUST(msgget(KEY, IPC_CREAT | 0600));
  struct message message = {1, {(char)('a' + seed), 0}};
  MUST(msgsnd(queue, &message, 2, 0));
  named = make_queue("/nested", 'n');
  unnamed = make_queue("/nested-gone", 'N');
  MUST(mq_unlink("/nested-gone"));
  grandchild = start_child(NULL, look_as_grandchild);
}

static void check(void) {
  char now[64];
  gethostname(now, sizeof now);
  EXPECT(strcmp(now, name) == 0, "the host name is %s", now);
  EXPECT(shmget(KEY, 0, 0) == -1 && errno == ENOENT, "an inner segment is outside: %m");
  ask_child(children[0]);
  ask_child(children[1]);
  for (int i = 0; i < 3; i++)
    EXPECT(inode_of(children[0], kinds[i]) != inode_of(children[1], kinds[i]), "children share %s", kinds[i]);
}

static void rename_child(void) {
  int fd = open("/proc/self/ns/uts", O_RDONLY);
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/uts", children[1]);
  setns(open(path, O_RDONLY), CLONE_NEWUTS);
  sethostname("spoiled", 7);
  setns(fd, CLONE_NEWUTS);
}

int main(int argc, char **argv) {
  begin();
  if (argc > 1 && strcmp(argv[1], "own") == 0) MUST(unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP));
  for (seed = 1; seed <= 2; seed++) children[seed - 1] = start_child(setup_child, check_child);
  gethostname(name, sizeof name);
  tamper = rename_child;
  serve(check);
}
