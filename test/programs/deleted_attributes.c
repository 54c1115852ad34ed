// Extended attributes of what is in no file system any more: a deleted file (with an access control list and the capabilities of a
// program), a deleted directory, and a memfd.
#include "test.h"
#include <linux/capability.h>
#include <sys/xattr.h>

static int file, directory, memory;
// An access control list with a user of its own: version 2; owner, user 12, group, mask, others.
static const unsigned char acl[] = {2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0,   4,   0,   12,  0,  0, 0, 4, 0,
                                    0, 0, 255, 255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255};
static const struct vfs_cap_data capabilities = {.magic_etc = VFS_CAP_REVISION_2, .data = {{1 << CAP_NET_RAW, 0}}};

// Not every file system has them.
static bool has_user, has_acl, has_memory;

static bool give(int fd, const char *name, const void *value, size_t size) { return fsetxattr(fd, name, value, size, 0) == 0; }

static void expect(int fd, const char *name, const void *wanted, size_t size) {
  unsigned char value[256];
  ssize_t got = fgetxattr(fd, name, value, sizeof value);
  EXPECT(got == (ssize_t)size && memcmp(value, wanted, size) == 0, "%s of fd %d has %zd bytes", name, fd, got);
}

static void check(void) {
  expect(file, "security.capability", &capabilities, sizeof capabilities);
  expect(file, "trusted.test", "of root", 7);
  if (has_user) expect(file, "user.test", "hello", 5);
  if (has_user) expect(directory, "user.test", "there", 5);
  if (has_acl) expect(file, "system.posix_acl_access", acl, sizeof acl);
  if (has_memory) expect(memory, "user.test", "memory", 6);
}

static void spoil(void) { MUST(fremovexattr(file, "trusted.test")); }

int main(void) {
  begin();
  file = (int)MUST(open("deleted", O_RDWR | O_CREAT, 0600));
  MUST(unlink("deleted"));
  MUST(mkdir("gone", 0700));
  directory = (int)MUST(open("gone", O_RDONLY | O_DIRECTORY));
  has_user = give(file, "user.test", "hello", 5) && give(directory, "user.test", "there", 5);
  MUST(rmdir("gone"));
  has_acl = give(file, "system.posix_acl_access", acl, sizeof acl);
  MUST(give(file, "security.capability", &capabilities, sizeof capabilities) ? 0 : -1);
  MUST(give(file, "trusted.test", "of root", 7) ? 0 : -1);
  memory = (int)MUST(memfd_create("attributes", 0));
  has_memory = give(memory, "user.test", "memory", 6);
  tamper = spoil;
  serve(check);
}
