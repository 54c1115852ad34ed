// The root of a mount whose name was deleted: it lives on as long as it is mounted. CRIU makes an empty one again; what was in a
// file, and whose it was, is saved in a private field. A deleted directory has nothing in it.

import { readFileSync, statSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { MntEntry } from "../../images/schema/messages.generated.ts";
import { mountIdOf } from "../../proc/mount-id.ts";
import { O_WRONLY, S_IFDIR, S_IFMT, S_IFREG } from "../../sys/abi/fcntl.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { pathArgument, pathBytes } from "../files/path.ts";
import type { CollectedMounts, MountNamespaces } from "./collect.ts";

/** Larger ones are refused: all of it goes through memory. */
const MOST = 1024 * 1024;

/** Whether what is mounted has no name any more, and does not come from outside. */
export function hasDeletedRoot({ deleted, ext_key }: MntEntry): boolean {
  return deleted === true && ext_key === undefined;
}

/** The entry with what its deleted root is; as it is where the root is not deleted, or comes from outside. */
export function withDeletedRoot(
  entry: MntEntry,
  { prefix, namespace }: CollectedMounts,
  { innerId }: Pick<MountNamespaces, "innerId">,
): MntEntry {
  if (!hasDeletedRoot(entry)) return entry;
  const path = pathBytes(prefix + entry.mountpoint);
  // What covers it is taken off again after the restore, if ever: it is empty then.
  if (mountIdOf(path) !== entry.mnt_id) return entry;
  const { mode, uid, gid, size } = statSync(path);
  const isFile = (mode & S_IFMT) === S_IFREG;
  if ((!isFile && (mode & S_IFMT) !== S_IFDIR) || size > MOST) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump the mount ${entry.mountpoint}: what is mounted there was deleted, and is ${isFile ? `larger than ${MOST} bytes` : "neither a file nor a directory"}`,
      { pid: namespace.pid, hint: "Take the mount away, or put the file back where it was." },
    );
  }
  return {
    ...entry,
    gone: {
      mode: mode & 0o7777,
      uid: innerId("uid", uid),
      gid: innerId("gid", gid),
      ...(isFile ? { content: readFileSync(path) } : {}),
    },
  };
}

/** Adds the calls that make a new root what the deleted one was. */
export function fillDeletedRoot(
  program: Program,
  { mountpoint, gone }: MntEntry,
  { directory, path }: { readonly directory: Argument; readonly path: string },
): void {
  if (gone === undefined) return;
  const label = `fill the deleted root of the mount ${mountpoint}`;
  const name = pathArgument(program, path);
  const content = Buffer.from(gone.content ?? []);
  if (content.length > 0) {
    const fd = program.call("openat", [directory, name, O_WRONLY, 0], { label });
    program.call("write", [fd, program.data(content), content.length], {
      label,
      expect: content.length,
    });
    program.call("close", [fd]);
  }
  program.call("fchownat", [directory, name, gone.uid, gone.gid, 0], { label });
  program.call("fchmodat", [directory, name, gone.mode], { label });
}
