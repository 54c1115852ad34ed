// Descriptors that the caller of the restore brings (--inherit-fd): copies of the engine's go along with the seed, so that they
// are in all tasks while files are opened. Files of the tree that were the same object are made from them.

import { RepriseError } from "../errors.ts";
import type { LoadedSet } from "../images/check-set.ts";
import type { FileEntry } from "../images/schema/messages.generated.ts";
import { kindOfType } from "../objects/files/registry.ts";
import { F_DUPFD } from "../sys/abi/fcntl.ts";
import { RLIMIT_NOFILE } from "../sys/abi/sched.ts";
import { EINVAL } from "../sys/errno.ts";
import { syscall, syscallError, trySyscall } from "../sys/ffi.ts";
import type { Program } from "../tracee/program.ts";

type InheritFds = ReadonlyMap<string, number>;

/** More than the places of what the seed keeps besides: those must not fall on a copy that is still to be moved. */
const ROOM = 256;

/** The engine's copies, which are not close-on-exec. */
export interface InheritedCopies {
  readonly fds: InheritFds;
  close(): void;
}

/**
 * Copies the caller's descriptors, above `first`.
 *
 * @throws RepriseError BAD_ARGUMENT for one that is not open
 */
export function copyInherited(inherited: InheritFds, first: number): InheritedCopies {
  const fds = new Map<string, number>();
  const close = (): void => {
    for (const fd of fds.values()) trySyscall("close", fd);
    fds.clear();
  };
  try {
    for (const [key, fd] of inherited) fds.set(key, copyAbove(fd, key, first));
  } catch (error) {
    close();
    throw error;
  }
  return { fds, close };
}

/** Adds the calls that put the copies to their places in the seed. @returns where each is */
export function placeInherited(
  program: Program,
  { fds }: InheritedCopies,
  firstPlace: number,
): Map<string, number> {
  const places = new Map<string, number>();
  for (const [key, fd] of fds) {
    const place = firstPlace + places.size;
    program.call("dup3", [fd, place, 0], { label: `keep the inherited ${key}` });
    program.call("close", [fd]);
    places.set(key, place);
  }
  return places;
}

/** The key by which a file of the images is inherited. */
export function inheritedKey(
  entry: FileEntry,
  set: LoadedSet,
  inherited: InheritFds,
): string | undefined {
  if (inherited.size === 0) return undefined;
  const keys = kindOfType(entry.type).inheritKeys?.(entry, set) ?? [];
  return keys.find((key) => inherited.has(key));
}

/** The files that are opened by their own names. */
export function withoutInherited(
  files: readonly FileEntry[],
  set: LoadedSet,
  inherited: InheritFds = new Map(),
): readonly FileEntry[] {
  return files.filter((file) => inheritedKey(file, set, inherited) === undefined);
}

/**
 * A copy that the seed inherits, above all places of the pool that begins at `start`: what is put there must not be lost.
 *
 * @throws RepriseError BAD_ARGUMENT for a descriptor that is not open
 */
export function copyAbove(fd: number, key: string, start: number): number {
  const first = start + ROOM;
  const made = trySyscall("fcntl", fd, F_DUPFD, first);
  if (made >= 0) return made;
  if (made !== -EINVAL) {
    throw new RepriseError("BAD_ARGUMENT", `cannot inherit ${key}: descriptor ${fd} is not open`, {
      hint: "The caller must leave it open for the restore, and not close-on-exec.",
    });
  }
  // Above our limit on open files: for the moment it is as high as it may be.
  const limit = Buffer.alloc(16);
  syscall("prlimit64", 0, RLIMIT_NOFILE, 0, limit);
  const raised = Buffer.from(limit);
  limit.copy(raised, 0, 8);
  syscall("prlimit64", 0, RLIMIT_NOFILE, raised, 0);
  const again = trySyscall("fcntl", fd, F_DUPFD, first);
  syscall("prlimit64", 0, RLIMIT_NOFILE, limit, 0);
  if (again < 0) throw syscallError("fcntl", -again, `inherit ${key}`);
  return again;
}
