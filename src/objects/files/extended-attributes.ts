// Extended attributes (xattr(7)) of files that only the images have: deleted ones and memfds. Kept are those of users, access control
// lists, and capabilities of programs; labels of security modules (security.*) come by themselves.

import type { RepriseXattr } from "../../images/schema/messages.generated.ts";
import { syscallError, trySyscall } from "../../sys/ffi.ts";
import { EOPNOTSUPP } from "../../sys/errno.ts";
import type { Argument, Program } from "../../tracee/program.ts";

/** XATTR_LIST_MAX and XATTR_SIZE_MAX. */
const MAX_SIZE = 65_536;

/** Attributes of the file that a path leads to, through links as those of /proc. @throws RepriseError SYSCALL */
export function readXattrs(path: string): RepriseXattr[] {
  const file = Buffer.from(`${path}\0`);
  // Nearly always there are none.
  const length = trySyscall("listxattr", file, 0, 0);
  if (length === 0 || length === -EOPNOTSUPP) return [];
  if (length < 0) throw syscallError("listxattr", -length, `list the attributes of ${path}`);
  const names = Buffer.alloc(MAX_SIZE);
  const listed = trySyscall("listxattr", file, names, names.length);
  return names
    .toString("latin1", 0, Math.max(listed, 0))
    .split("\0")
    .filter(isKept)
    .flatMap((name) => readOne(file, name));
}

function isKept(name: string): boolean {
  return (
    name.startsWith("user.") ||
    name.startsWith("trusted.") ||
    name.startsWith("system.posix_acl_") ||
    name === "security.capability"
  );
}

function readOne(file: Buffer, name: string): RepriseXattr[] {
  const value = Buffer.alloc(MAX_SIZE);
  const size = trySyscall("getxattr", file, Buffer.from(`${name}\0`, "latin1"), value, MAX_SIZE);
  if (size < 0) throw syscallError("getxattr", -size, `read the attribute ${name}`);
  return [{ name, value: Uint8Array.from(value.subarray(0, size)) }];
}

/** Adds the calls that give attributes to an open file; after its owner and mode, which some of them follow. */
export function restoreXattrs(
  program: Program,
  fd: Argument,
  file: {
    readonly xattrs: readonly RepriseXattr[];
    readonly what: string;
    /** In a user namespace of its own a tree may not set all that it could see. */
    readonly isForeigner: boolean;
  },
): void {
  for (const { name, value } of file.xattrs) {
    const args = [fd, program.string(name), program.data(value), value.length, 0];
    program.call("fsetxattr", args, {
      label: `set the attribute ${name} of ${file.what}`,
      mayFail: file.isForeigner,
      hint: "The file system must know extended attributes.",
    });
  }
}
