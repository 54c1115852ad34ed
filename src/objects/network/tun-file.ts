// Files of /dev/net/tun: each is attached to a tun or tap device, as one of its queues, or to none yet. The entry goes with one of
// a regular file of the same id, which has the path. The device itself is in its namespace's images (tun-device.ts), and comes
// back persistent; the first file that is attached again takes that away where it was not so. format.md section 11, tunfile.

import { RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type TunfileEntry,
} from "../../images/schema/messages.generated.ts";
import { S_IFCHR, S_IFMT } from "../../sys/abi/fcntl.ts";
import * as tun from "../../sys/abi/tun.ts";
import { EBADFD, errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "../files/file-kind.ts";
import { NO_POSITION, openRegular, regularEntry } from "../files/regular.ts";
import { inSocketNamespace, socketNamespace } from "../sockets/socket-namespace.ts";
import { ifreq, readTunState, tunStatesOf } from "./tun-device.ts";

// The kernel counts a position for such files that cannot be set.

/** The device node of tun and tap files. */
const MAJOR = 10;
const MINOR = 200;

export const tunFileKind: FileKind = {
  name: "tun file",
  type: FdTypes.TUNF,
  recognise: ({ stat }) =>
    (stat.mode & S_IFMT) === S_IFCHR && stat.rdevMajor === MAJOR && stat.rdevMinor === MINOR,
  write: writeTunFile,
  open: openTunFile,
};

function writeTunFile(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const fd = dump.borrow(file);
  const namespace = socketNamespace(fd, dump);
  const reg = { ...regularEntry(file, id, dump), pos: NO_POSITION };
  dump.addEntry(() => ({ type: FdTypes.REG, id, reg }));
  const entry: TunfileEntry = {
    id,
    ...(namespace.id === undefined ? {} : { ns_id: namespace.id }),
  };
  const request = Buffer.alloc(tun.IFREQ_SIZE);
  const result = trySyscall("ioctl", fd, tun.TUNGETIFF, request);
  if (result === -EBADFD) return { type: FdTypes.TUNF, id, tunf: entry };
  if (result < 0) throw refusal(file, `ioctl TUNGETIFF: ${errnoName(-result)}`, "");
  const netdev = request.toString("latin1", 0, tun.IFREQ_FLAGS).replace(/\0.*$/s, "");
  const flags = request.readUInt16LE(tun.IFREQ_FLAGS);
  if (dump.namespaces?.ofRoot("net") === undefined) {
    throw refusal(
      file,
      `it is attached to network device ${netdev} of a namespace that is not saved`,
      "Run the program in a network namespace of its own (unshare -n, or a container).",
    );
  }
  tunStatesOf(dump.images).set(`${namespace.inode}/${netdev}`, readTunState(fd, netdev, flags));
  const detached = (flags & tun.IFF_DETACH_QUEUE) !== 0;
  return {
    type: FdTypes.TUNF,
    id,
    tunf: { ...entry, netdev, ...(detached ? { detached: true } : {}) },
  };
}

function openTunFile(program: Program, { id, tunf }: FileEntry, restore: FilesRestore): Argument {
  const reg = restore.set.regularFiles.get(id);
  if (tunf === undefined || reg === undefined) {
    throw new RepriseError("BAD_IMAGE", `file ${id} is no tun file, or has no path`);
  }
  const fd = inSocketNamespace(program, { id: tunf.ns_id, restore }, () =>
    openRegular(program, { ...reg, pos: NO_POSITION }, restore),
  );
  const { netdev } = tunf;
  if (netdev === undefined || netdev === "") return fd;
  const { net } = restore.set.namespaces;
  const devices = [...net].filter(([ns]) => tunf.ns_id === undefined || tunf.ns_id === ns);
  const device = devices
    .flatMap(([, content]) => content.devices)
    .find(({ name }) => name === netdev);
  if (device?.tun === undefined) {
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot restore tun file ${id}: its device ${netdev} is not in the images`,
    );
  }
  const what = `tun file ${id} (${netdev})`;
  const request = (flags: number): Argument => program.data(ifreq(netdev, flags));
  program.call("ioctl", [fd, tun.TUNSETIFF, request(device.tun.flags)], {
    label: `attach ${what}`,
    hint: "A device of a namespace with a single queue takes one file only.",
  });
  // The device's, but each file has it for itself.
  const size = Buffer.alloc(4);
  size.writeInt32LE(device.tun.sndbuf);
  program.call("ioctl", [fd, tun.TUNSETSNDBUF, program.data(size)], {
    label: `set the send buffer of ${what}`,
  });
  if (tunf.detached === true) {
    const args = [fd, tun.TUNSETQUEUE, request(tun.IFF_DETACH_QUEUE)];
    program.call("ioctl", args, { label: `detach the queue of ${what}` });
  }
  if ((device.tun.flags & tun.IFF_PERSIST) === 0) {
    program.call("ioctl", [fd, tun.TUNSETPERSIST, 0], { label: `let go of ${netdev}` });
  }
  return fd;
}

function refusal({ task, fd, target }: OpenFile, why: string, hint: string): RepriseError {
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump fd ${fd} of pid ${task.pid} (${target}): ${why}`,
    {
      pid: task.pid,
      fd,
      hint,
    },
  );
}
