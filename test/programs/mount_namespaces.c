// A mount namespace with one of each: memory file systems with content, covered, read-only and deleted roots, binds of
// directories and files, peer groups and slaves, /proc, devpts, and a child in a further mount namespace. Files are open in both.
// Run with "alone" it has no child. What is mounted on `outside` in the current directory when it starts, a directory or a file, stays mounted there, and is shared.
#include "mounts.h"
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

static const char DEEP[] = "m/mem/dir/deep";
static int in_memory, lost, twice;
static pid_t child;

static void put(const char *path, const char *text) {
  int fd = (int)MUST(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640));
  MUST(write(fd, text, strlen(text)));
  close(fd);
}

static bool holds(const char *path, const char *text) {
  char got[256];
  return read_text(path, got, sizeof got) >= 0 && strcmp(got, text) == 0;
}

// A mount as mountinfo tells it: the last one at the path, as that is on top.
struct mount {
  bool found, read_only, no_exec;
  int count, shared, master;
  char root[512], type[64];
};

static struct mount mount_at(const char *name) {
  struct mount found = {0};
  char here[1024], wanted[2048], line[4096], root[512], point[1024], options[256];
  MUST(getcwd(here, sizeof here) == NULL ? -1 : 0);
  snprintf(wanted, sizeof wanted, "%s%s%s", name[0] == '/' ? "" : here, name[0] == '/' ? "" : "/", name);
  FILE *file = fopen("/proc/self/mountinfo", "re");
  EXPECT(file != NULL, "/proc/self/mountinfo: %m");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    if (sscanf(line, "%*d %*d %*s %511s %1023s %255s", root, point, options) != 3) continue;
    if (strcmp(point, wanted) != 0) continue;
    int count = found.count + 1;
    found = (struct mount){.found = true, .count = count};
    strcpy(found.root, root);
    found.read_only = strncmp(options, "ro", 2) == 0;
    found.no_exec = strstr(options, "noexec") != NULL;
    const char *shared = strstr(line, " shared:"), *master = strstr(line, " master:");
    if (shared != NULL) found.shared = atoi(shared + 8);
    if (master != NULL) found.master = atoi(master + 8);
    sscanf(strstr(line, " - ") + 3, "%63s", found.type);
  }
  if (file != NULL) fclose(file);
  return found;
}

static void check_memory(void) {
  struct stat stat_of, other;
  EXPECT(strcmp(mount_at("m/mem").type, "tmpfs") == 0, "m/mem is no tmpfs");
  EXPECT(holds("m/mem/file", "content\n"), "a file of a tmpfs has other content");
  EXPECT(holds(DEEP, "deep\n"), "a deep file of a tmpfs has other content");
  EXPECT(stat("m/mem/dir", &stat_of) == 0 && (stat_of.st_mode & 07777) == 01751 && stat_of.st_gid == 77,
         "a directory of a tmpfs has mode %o and group %d", stat_of.st_mode, stat_of.st_gid);
  EXPECT(stat("m/mem/file", &stat_of) == 0 && stat("m/mem/dir/hard", &other) == 0 &&
             stat_of.st_ino == other.st_ino && stat_of.st_nlink == 2, "a hard link is gone");
  EXPECT(stat("m/mem/null", &stat_of) == 0 && S_ISCHR(stat_of.st_mode) && stat_of.st_rdev == makedev(1, 3),
         "a device is gone");
  EXPECT(stat("m/mem/fifo", &stat_of) == 0 && S_ISFIFO(stat_of.st_mode), "a FIFO is gone");
  EXPECT(stat("m/mem/holes", &stat_of) == 0 && stat_of.st_size == 8 << 20 && stat_of.st_blocks < 100,
         "a file with holes has %lld blocks", (long long)stat_of.st_blocks);
  char link[64] = "";
  EXPECT(readlink("m/mem/link", link, sizeof link - 1) > 0 && strcmp(link, "dir/deep") == 0, "a link says %s", link);
  EXPECT(strcmp(mount_at("m/ro").type, "tmpfs") == 0 && holds("m/ro/file", "kept\n"), "m/ro has lost its file");
  EXPECT(open("m/ro/new", O_CREAT | O_WRONLY, 0600) == -1 && errno == EROFS, "m/ro can be written: %m");
}

static void check_files(void) {
  char text[16] = "";
  struct stat stat_of;
  EXPECT_EQ(lseek(in_memory, 0, SEEK_CUR), 3);
  EXPECT(pread(in_memory, text, 7, 0) == 7 && strcmp(text, "content") == 0, "an open file reads %s", text);
  memset(text, 0, sizeof text);
  EXPECT(pread(lost, text, 4, 0) == 4 && strcmp(text, "lost") == 0, "a deleted file reads %s", text);
  EXPECT(fstat(lost, &stat_of) == 0 && stat_of.st_nlink == 0, "a deleted file has a name");
  EXPECT(fstat(twice, &stat_of) == 0 && stat("m/bound/deep", &stat_of) == 0, "a file behind a bind: %m");
}

static int caller, called;

// A connection whose listener is gone, and whose name will be covered: nothing of it may keep what covers it in use.
static void connect_below(void) {
  struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "m/over/socket"};
  int listener = (int)MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  MUST(bind(listener, (void *)&name, sizeof name));
  MUST(listen(listener, 1));
  caller = (int)MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  MUST(connect(caller, (void *)&name, sizeof name));
  called = (int)MUST(accept(listener, NULL, NULL));
  close(listener);
}

static void check_binds(void) {
  struct mount bound = mount_at("m/bound"), file = mount_at("m/filebind"), gone = mount_at("m/gone");
  EXPECT(bound.read_only && bound.no_exec && strcmp(bound.root, "/dir") == 0, "m/bound shows %s", bound.root);
  EXPECT(open("m/bound/new", O_CREAT | O_WRONLY, 0600) == -1 && errno == EROFS, "m/bound can be written: %m");
  EXPECT(file.found && holds("m/filebind", "content\n"), "a bound file has other content");
  EXPECT(strcmp(gone.root, "/gone//deleted") == 0, "a deleted root is %s", gone.root);
  EXPECT(access("m/mem/gone", F_OK) == -1, "a deleted directory is back");
  EXPECT_EQ(mount_at("m/over").count, 2);
  EXPECT(holds("m/over/file", "upper\n"), "the upper of two mounts has other content");
  char byte = 'x';
  EXPECT(write(caller, &byte, 1) == 1 && read(called, &byte, 1) == 1, "the connection below a mount: %m");
  if (!final_round) return;
  EXPECT(umount("m/over") == 0 && holds("m/over/file", "lower\n"), "the lower of two mounts has other content");
}

static void check_groups(void) {
  struct mount shared = mount_at("m/shared"), peer = mount_at("m/peer"), slave = mount_at("m/slave");
  EXPECT(shared.shared != 0 && shared.shared == peer.shared, "peer groups %d and %d", shared.shared, peer.shared);
  EXPECT(slave.master == shared.shared && slave.shared == 0, "a slave of %d has master %d", shared.shared, slave.master);
  EXPECT(mount_at("m/mem").shared == 0, "a private mount is shared");
  EXPECT(mount("inner", "m/peer/inner", "tmpfs", 0, NULL) == 0, "mount: %m");
  EXPECT(mount_at("m/shared/inner").found && mount_at("m/slave/inner").found, "a mount did not spread");
  EXPECT(umount("m/shared/inner") == 0 && !mount_at("m/slave/inner").found, "an umount did not spread: %m");
  EXPECT(mount("inner", "m/slave/inner", "tmpfs", 0, NULL) == 0 && !mount_at("m/shared/inner").found,
         "a slave's mount went up");
  umount("m/slave/inner");
}

static void check(void) {
  check_memory();
  check_files();
  check_binds();
  check_groups();
  EXPECT(strcmp(mount_at("/proc").type, "proc") == 0, "/proc is no proc");
  EXPECT(strcmp(mount_at("m/pts").type, "devpts") == 0, "m/pts is no devpts");
  if (access("outside", F_OK) == 0) {
    EXPECT(holds(access("outside/file", F_OK) == 0 ? "outside/file" : "outside", "theirs\n"), "what comes from outside is gone");
    EXPECT(mount_at("outside").shared != 0, "what comes from outside is not shared");
  }
  EXPECT(!mount_at("m/own").found, "the child's mount is in its parent's namespace");
  if (child != 0) ask_child(child);
}

static int own_file;

static void apart(void) {
  MUST(unshare(CLONE_NEWNS));
  MUST(umount("m/filebind"));
  MUST(umount("m/gone")); // CRIU makes a deleted root once for each mount
  MUST(mount("own", "m/own", "tmpfs", 0, "size=1m"));
  put("m/own/file", "own\n");
  own_file = (int)MUST(open("m/own/file", O_RDWR | O_CLOEXEC));
}

static void check_apart(void) {
  char text[8] = "";
  struct stat inside, named;
  EXPECT(mount_at("m/own").found && !mount_at("m/filebind").found, "the child has its parent's mounts");
  EXPECT(mount_at("m/shared").shared == mount_at("m/peer").shared, "the child's groups differ");
  EXPECT(pread(own_file, text, 4, 0) == 4 && strcmp(text, "own\n") == 0, "the child's file reads %s", text);
  EXPECT(fstat(own_file, &inside) == 0 && stat("m/own/file", &named) == 0 && inside.st_ino == named.st_ino,
         "the child's file is another one");
  EXPECT(holds("m/mem/file", "content\n"), "the child sees another tmpfs");
}

static void spoil(void) { put("m/mem/file", "spoilt\n"); }

static void make_mounts(void) {
  const char *names[] = {"mem", "ro", "bound", "gone", "over", "shared", "peer", "slave", "pts", "own"};
  char path[64];
  MUST(mkdir("m", 0755));
  for (size_t i = 0; i < COUNT(names); i++) {
    snprintf(path, sizeof path, "m/%s", names[i]);
    MUST(mkdir(path, 0755));
  }
  put("m/filebind", "");
  MUST(mount("mem", "m/mem", "tmpfs", MS_NODEV, "size=4m,mode=755"));
  MUST(mkdir("m/mem/dir", 0751));
  MUST(chown("m/mem/dir", 0, 77));
  MUST(chmod("m/mem/dir", 01751));
  put("m/mem/file", "content\n");
  put(DEEP, "deep\n");
  MUST(link("m/mem/file", "m/mem/dir/hard"));
  MUST(symlink("dir/deep", "m/mem/link"));
  MUST(mknod("m/mem/null", S_IFCHR | 0666, makedev(1, 3)));
  MUST(mkfifo("m/mem/fifo", 0600));
  put("m/mem/holes", "data");
  MUST(truncate("m/mem/holes", 8 << 20));
  MUST(mount("ro", "m/ro", "tmpfs", 0, NULL));
  put("m/ro/file", "kept\n");
  MUST(mount(NULL, "m/ro", NULL, MS_REMOUNT | MS_RDONLY, NULL));
  MUST(mount("m/mem/dir", "m/bound", NULL, MS_BIND, NULL));
  MUST(mount(NULL, "m/bound", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOEXEC, NULL));
  MUST(mount("m/mem/file", "m/filebind", NULL, MS_BIND, NULL));
  MUST(mkdir("m/mem/gone", 0700));
  MUST(mount("m/mem/gone", "m/gone", NULL, MS_BIND, NULL));
  MUST(rmdir("m/mem/gone"));
  MUST(mount("lower", "m/over", "tmpfs", 0, NULL));
  put("m/over/file", "lower\n");
  connect_below();
  MUST(mount("upper", "m/over", "tmpfs", 0, NULL));
  put("m/over/file", "upper\n");
  MUST(mount("shared", "m/shared", "tmpfs", 0, NULL));
  MUST(mkdir("m/shared/inner", 0755));
  MUST(mount(NULL, "m/shared", NULL, MS_SHARED, NULL));
  MUST(mount("m/shared", "m/peer", NULL, MS_BIND, NULL));
  MUST(mount("m/shared", "m/slave", NULL, MS_BIND, NULL));
  MUST(mount(NULL, "m/slave", NULL, MS_SLAVE, NULL));
  MUST(mount("devpts", "m/pts", "devpts", 0, "newinstance,ptmxmode=666"));
}

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  if (argc < 3) leave_outside(argc < 2 ? "" : argv[1]);
  bool is_alone = strcmp(argv[2], "alone") == 0;
  if (access("outside", F_OK) == 0) MUST(mount(NULL, "outside", NULL, MS_SHARED, NULL));
  make_mounts();
  in_memory = (int)MUST(open("m/mem/file", O_RDWR | O_CLOEXEC));
  MUST(lseek(in_memory, 3, SEEK_SET));
  lost = (int)MUST(open("m/mem/lost", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  MUST(write(lost, "lost", 4));
  MUST(unlink("m/mem/lost"));
  twice = (int)MUST(open("m/bound/deep", O_RDONLY | O_CLOEXEC));
  if (!is_alone) child = start_child(apart, check_apart);
  serve(check);
}
