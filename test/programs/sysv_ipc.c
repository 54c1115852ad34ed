// An IPC namespace of the program's own: semaphores with their values, a message queue with messages of two types, and a segment
// that nobody has attached, locked and made by another user. Each keeps its id, key, owner and mode; with "used" the semaphores also
// that they have been used, and with "undo" a child whose end undoes what it did with them.
#include "test.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

static int sem, queue, empty_queue, segment;
static bool used;
static pid_t undoing;
struct message {
  long type;
  char text[64];
};

static void send(long type, const char *text) {
  struct message message = {.type = type};
  strcpy(message.text, text);
  EXPECT(msgsnd(queue, &message, strlen(text), IPC_NOWAIT) == 0, "msgsnd: %m");
}

static void expect_message(long type, const char *text) {
  struct message message = {0};
  ssize_t got = msgrcv(queue, &message, sizeof message.text, type, IPC_NOWAIT);
  EXPECT(got == (ssize_t)strlen(text) && strncmp(message.text, text, strlen(text)) == 0,
         "message of type %ld is %zd bytes: %s, wanted %s", type, got, message.text, text);
}

static void check(void) {
  EXPECT_EQ(semget(0x11, 3, 0), sem);
  struct semid_ds status;
  EXPECT(semctl(sem, 0, IPC_STAT, &status) == 0, "semctl: %m");
  EXPECT(!used || status.sem_otime != 0, "the semaphores are unused");
  EXPECT_EQ(semctl(sem, 0, GETVAL), 3);
  EXPECT_EQ(semctl(sem, 2, GETVAL), 30000);
  struct sembuf take = {0, -1, IPC_NOWAIT}, give = {0, 1, 0};
  EXPECT(semop(sem, &take, 1) == 0 && semop(sem, &give, 1) == 0, "semop: %m");
  if (undoing != 0) {
    EXPECT_EQ(semctl(sem, 1, GETVAL), 0);
    EXPECT_EQ(semctl(sem, 2, GETVAL), 30000);
    ask_child(undoing);
    if (final_round) {
      end_child(undoing);
      EXPECT_EQ(semctl(sem, 1, GETVAL), 2);
      EXPECT_EQ(semctl(sem, 2, GETVAL), 29990);
    }
  }
  EXPECT_EQ(status.sem_perm.uid, 1000);
  EXPECT_EQ(status.sem_perm.mode & 0777, 0640);

  EXPECT_EQ(msgget(0x22, 0), queue);
  EXPECT_EQ(msgget(0x23, 0), empty_queue);
  struct msqid_ds of_queue;
  EXPECT(msgctl(queue, IPC_STAT, &of_queue) == 0, "msgctl: %m");
  EXPECT_EQ(of_queue.msg_qnum, 3);
  EXPECT_EQ(of_queue.msg_qbytes, 5000);
  expect_message(2, "second");
  expect_message(0, "first");
  expect_message(0, "");
  send(1, "first");
  send(2, "second");
  send(1, "");

  EXPECT_EQ(shmget(0x33, 0, 0), segment);
  struct shmid_ds of_segment;
  EXPECT(shmctl(segment, IPC_STAT, &of_segment) == 0, "shmctl: %m");
  EXPECT_EQ(of_segment.shm_perm.cuid, 1234);
  EXPECT_EQ(of_segment.shm_perm.uid, 0);
  EXPECT(of_segment.shm_perm.mode & SHM_LOCKED, "the segment is not locked");
  char *memory = shmat(segment, NULL, 0);
  EXPECT(memory != (void *)-1 && filled(memory, 2 * PAGE, 9), "the segment changed");
  shmdt(memory);
}

static void *idle_thread(void *unused) {
  for (;;) pause();
  return unused;
}

// Its threads have the list in common.
static void take_both(void) {
  struct sembuf operations[] = {{1, -2, SEM_UNDO}, {2, 10, SEM_UNDO}};
  pthread_t thread;
  MUST(semop(sem, operations, 2));
  MUST(pthread_create(&thread, NULL, idle_thread, NULL));
}

static void nothing(void) {}

static void spoil(void) { semctl(sem, 0, SETVAL, 4); }

int main(int argc, char **argv) {
  begin();
  used = argc > 1 && strcmp(argv[1], "used") == 0;
  tamper = spoil;
  MUST(unshare(CLONE_NEWIPC));
  // So that ids are not the first ones.
  for (int i = 0; i < 3; i++) {
    MUST(semctl((int)MUST(semget(IPC_PRIVATE, 1, 0600)), 0, IPC_RMID));
    MUST(msgctl((int)MUST(msgget(IPC_PRIVATE, 0600)), IPC_RMID, NULL));
    MUST(shmctl((int)MUST(shmget(IPC_PRIVATE, PAGE, 0600)), IPC_RMID, NULL));
  }
  sem = (int)MUST(semget(0x11, 3, IPC_CREAT | 0640));
  MUST(semctl(sem, 0, SETVAL, 3));
  MUST(semctl(sem, 2, SETVAL, 30000));
  struct semid_ds status;
  MUST(semctl(sem, 0, IPC_STAT, &status));
  status.sem_perm.uid = 1000;
  MUST(semctl(sem, 0, IPC_SET, &status));
  struct sembuf give = {1, 1, 0};
  if (used) MUST(semop(sem, &give, 1));
  if (argc > 1 && strcmp(argv[1], "undo") == 0) {
    MUST(semctl(sem, 1, SETVAL, 2));
    MUST(semctl(sem, 2, SETVAL, 29990));
    undoing = start_child(take_both, nothing);
  }
  queue = (int)MUST(msgget(0x22, IPC_CREAT | 0600));
  empty_queue = (int)MUST(msgget(0x23, IPC_CREAT | 0600));
  struct msqid_ds of_queue;
  MUST(msgctl(queue, IPC_STAT, &of_queue));
  of_queue.msg_qbytes = 5000;
  MUST(msgctl(queue, IPC_SET, &of_queue));
  send(1, "first");
  send(2, "second");
  send(1, "");
  MUST(seteuid(1234));
  segment = (int)MUST(shmget(0x33, 2 * PAGE, IPC_CREAT | 0600));
  MUST(seteuid(0));
  struct shmid_ds of_segment;
  MUST(shmctl(segment, IPC_STAT, &of_segment));
  of_segment.shm_perm.uid = 0;
  MUST(shmctl(segment, IPC_SET, &of_segment));
  MUST(shmctl(segment, SHM_LOCK, NULL));
  char *memory = (char *)MUST(shmat(segment, NULL, 0));
  fill(memory, 2 * PAGE, 9);
  MUST(shmdt(memory));
  serve(check);
}
