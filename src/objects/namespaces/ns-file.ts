// Open files of /proc/PID/ns: each is a namespace, kept alive by whoever has it open, see namespaces(7). Those can be saved that a task
// of the tree lives in. At restore they come from /proc/self/ns of the root task, opened before it gets its mounts, or are the
// ones by which tasks enter the namespaces that they do not share with it.

import { RepriseError } from "../../errors.ts";
import { FdTypes, type FileEntry } from "../../images/schema/messages.generated.ts";
import { AT_FDCWD, F_DUPFD_CLOEXEC, O_CLOEXEC, O_PATH, O_RDONLY } from "../../sys/abi/fcntl.ts";
import type { FileKind, FilesRestore } from "../files/file-kind.ts";
import { NAMESPACE_KINDS, type KindOfNamespace } from "./kinds.ts";

/** Descriptors of a restore whose description is some file's already. */
const descriptions = new WeakMap<FilesRestore, Set<number>>();

export const nsFileKind: FileKind = {
  name: "namespace",
  type: FdTypes.NS,

  recognise: ({ target }) => parseTarget(target) !== undefined,

  write(file, id, { namespaces }) {
    const { task, fd, target, info } = file;
    const found = parseTarget(target);
    const nsId = found === undefined ? undefined : namespaces?.idOf(found.kind, found.inode);
    if (found === undefined || nsId === undefined) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot dump fd ${fd} of pid ${task.pid} (${target}): no task of the tree lives in this namespace`,
        { pid: task.pid, fd, hint: "Let the process close it before the dump." },
      );
    }
    const maker = namespaces?.all.find((one) => one.kind === found.kind && one.id === nsId)?.maker;
    if (maker !== undefined) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot dump fd ${fd} of pid ${task.pid} (${target}): pid ${maker} has made this namespace for its children alone`,
        { pid: task.pid, fd, hint: "Let the process close it before the dump." },
      );
    }
    return {
      type: FdTypes.NS,
      id,
      nsf: { id, ns_id: nsId, ns_cflag: found.flag, flags: info.flags },
    };
  },

  open(program, entry, restore) {
    const { kind, id } = namespaceOf(entry);
    const from = restore.namespaceFd?.(kind, id);
    if (from === undefined) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore file ${entry.id}: it is a ${kind} namespace (${id}) that no restored task lives in`,
      );
    }
    const label = { label: `open the ${kind} namespace` };
    const isPath = ((entry.nsf?.flags ?? 0) & O_PATH) !== 0;
    const taken = descriptions.get(restore) ?? new Set<number>();
    descriptions.set(restore, taken);
    if (!isPath && !taken.has(from)) {
      taken.add(from);
      return program.call("fcntl", [from, F_DUPFD_CLOEXEC, 0], label);
    }
    // A description of its own, where /proc is needed.
    const path = program.string(`/proc/self/fd/${from}`);
    const flags = (isPath ? O_PATH : O_RDONLY) | O_CLOEXEC;
    return program.call("openat", [AT_FDCWD, path, flags, 0], label);
  },
};

/** Kind and number of the namespace that an entry is about. @throws RepriseError BAD_IMAGE */
export function namespaceOf(entry: FileEntry): {
  readonly kind: KindOfNamespace["kind"];
  readonly id: number;
} {
  const flag = entry.nsf?.ns_cflag;
  const found = NAMESPACE_KINDS.find((known) => known.flag === flag);
  if (entry.nsf === undefined || found === undefined)
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot restore file ${entry.id}: it is no kind of namespace`,
    );
  return { kind: found.kind, id: entry.nsf.ns_id };
}

function parseTarget(target: string): (KindOfNamespace & { readonly inode: number }) | undefined {
  const match = /^(\w+):\[(\d+)\]$/.exec(target);
  const found = NAMESPACE_KINDS.find(({ kind }) => kind === match?.[1]);
  return found === undefined ? undefined : { ...found, inode: Number(match?.[2]) };
}
