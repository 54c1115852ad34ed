// Netlink sockets: conversations with the kernel, see netlink(7). What counts is the port number, the groups that are listened
// to, and whom the socket is connected to; all of it can be asked of a copy. format.md section 11, netlink_sk_entry.

import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import {
  FdTypes,
  type FileEntry,
  type NetlinkSkEntry,
  type RepriseSocketOption,
} from "../../images/schema/messages.generated.ts";
import { F_SETFL, O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import * as nl from "../../sys/abi/netlink.ts";
import * as so from "../../sys/abi/socket.ts";
import { EADDRINUSE, EAGAIN, errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { getNumber, getOption, setNumber } from "../../sys/socket.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "../files/file-kind.ts";
import { readOwner, restoreOwner } from "../files/owner.ts";
import { optionReader, socketOptions } from "./further-options.ts";
import { askedOnce, familyOf, FURTHER_NETLINK } from "./socket-answers.ts";
import { collectOptions, restoreOptions, restoreReuse } from "./socket-options.ts";
import { inSocketNamespace, socketNamespace } from "./socket-namespace.ts";

export const netlinkKind: FileKind = {
  name: "netlink socket",
  type: FdTypes.NETLINKSK,
  recognise: (file, dump) =>
    file.target.startsWith("socket:[") && familyOf(file, dump) === so.AF_NETLINK,
  write: (file, id, dump) =>
    askedOnce(dump.borrow(file), so.AF_NETLINK, () => writeNetlink(file, id, dump)),
  open: openNetlink,
};

function writeNetlink(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const fd = dump.borrow(file);
  const namespace = socketNamespace(fd, dump);
  refuseWaiting(file, fd);
  const protocol = getNumber(fd, so.SOL_SOCKET, so.SO_PROTOCOL);
  const own = nameOf(fd, "getsockname");
  const peer = nameOf(fd, "getpeername");
  const connected = peer.port !== 0 || peer.groups !== 0;
  const entry: NetlinkSkEntry = {
    id,
    ino: Number(file.stat.inode),
    protocol,
    state: connected ? nl.NETLINK_CONNECTED : nl.NETLINK_UNCONNECTED,
    flags: file.info.flags & ~O_CLOEXEC,
    portid: own.port,
    groups: memberships(fd),
    dst_portid: peer.port,
    // A socket sends to one group at most.
    dst_group: peer.groups === 0 ? 0 : 32 - Math.clz32(peer.groups),
    fown: readOwner(file, dump),
    opts: collectOptions(file, fd, { family: so.AF_NETLINK }),
    ...(namespace.id === undefined ? {} : { ns_id: namespace.id }),
    options: [
      ...furtherOptions(fd),
      ...optionReader(dump).read(
        fd,
        { family: so.AF_NETLINK, type: so.SOCK_RAW, proto: protocol },
        { places: socketOptions, namespace },
      ),
    ],
  };
  return { type: FdTypes.NETLINKSK, id, nlsk: entry };
}

const ONE_BYTE = Buffer.alloc(1);

/** Answers that wait cannot be put back: they came from the kernel. */
function refuseWaiting(file: OpenFile, fd: number): void {
  const flags = so.MSG_PEEK | so.MSG_DONTWAIT;
  const length = trySyscall("recvfrom", fd, ONE_BYTE, 1, flags, 0, 0);
  if (length === -EAGAIN) return;
  const { task } = file;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump fd ${file.fd} of pid ${task.pid} (${file.target}): a netlink socket with messages that have not been read`,
    {
      pid: task.pid,
      fd: file.fd,
      hint: "Try again when the process has read them.",
    },
  );
}

/** struct sockaddr_nl: family, port, groups. */
function nameOf(
  fd: number,
  call: "getsockname" | "getpeername",
): { readonly port: number; readonly groups: number } {
  const name = Buffer.alloc(nl.SOCKADDR_NL_SIZE);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(name.length);
  syscall(call, fd, name, length);
  return { port: name.readUInt32LE(4), groups: name.readUInt32LE(8) };
}

/** Bytes for the groups of most families, and of any. */
const FEW_GROUPS = 64;
const MANY_GROUPS = 4096;

/** Groups as bits, in words; without empty words at the end. */
function memberships(fd: number): number[] {
  const option = { level: nl.SOL_NETLINK, name: nl.NETLINK_LIST_MEMBERSHIPS };
  let bits = getOption(fd, { ...option, size: FEW_GROUPS });
  // As long as the room, or longer.
  if (typeof bits !== "number" && bits.length === FEW_GROUPS)
    bits = getOption(fd, { ...option, size: MANY_GROUPS });
  if (typeof bits === "number") return [];
  const words = Array.from({ length: Math.floor(bits.length / 4) }, (_, at) =>
    bits.readUInt32LE(at * 4),
  );
  return words.slice(0, words.findLastIndex((word) => word !== 0) + 1);
}

function furtherOptions(fd: number): RepriseSocketOption[] {
  return FURTHER_NETLINK.flatMap((name) => {
    const value = getOption(fd, { level: nl.SOL_NETLINK, name, size: 4 });
    const isSet = typeof value !== "number" && value.some((byte) => byte !== 0);
    return isSet ? [{ level: nl.SOL_NETLINK, name, value }] : [];
  });
}

function openNetlink(program: Program, { id, nlsk }: FileEntry, restore: FilesRestore): Argument {
  if (nlsk === undefined) throw new RepriseError("BAD_IMAGE", `file ${id} is no netlink socket`);
  const what = `netlink socket ${nlsk.ino} (file ${id})`;
  const fd = inSocketNamespace(program, { id: nlsk.ns_id, restore }, () =>
    program.call("socket", [so.AF_NETLINK, so.SOCK_RAW | so.SOCK_CLOEXEC, nlsk.protocol], {
      label: `make ${what}`,
      hint: "The kernel must have the same netlink families.",
    }),
  );
  const label = `restore the flags of ${what}`;
  program.call("fcntl", [fd, F_SETFL, nlsk.flags & O_NONBLOCK], { label });
  restoreReuse(program, nlsk.opts, { fd, what });
  restoreOptions(program, nlsk.opts, { fd, what });
  restoreOwner(program, nlsk.fown, fd);
  // Ports may be taken, so they are tried out, which programs cannot do.
  restore.inEngine((copies) => bindAndConnect(copies.file(id), nlsk, what));
  return fd;
}

function bindAndConnect(fd: number, entry: NetlinkSkEntry, what: string): void {
  const { options, portid, groups, dst_group: group } = entry;
  for (const { level, name, value } of options) {
    syscall("setsockopt", fd, level, name, value, value.length);
  }
  if (portid !== 0) bind(fd, portid, what);
  groups.forEach((word, index) => {
    for (let bit = 0; bit < 32; bit++) {
      if ((word & (1 << bit)) === 0) continue;
      const value = index * 32 + bit + 1;
      setNumber(fd, { level: nl.SOL_NETLINK, name: nl.NETLINK_ADD_MEMBERSHIP, value });
    }
  });
  if (entry.state !== nl.NETLINK_CONNECTED) return;
  const name = address(entry.dst_portid, group === 0 ? 0 : (1 << (group - 1)) >>> 0);
  syscall("connect", fd, name, name.length);
}

/** Programs seldom care which port they have, as the kernel chooses it. */
function bind(fd: number, portid: number, what: string): void {
  const wanted = address(portid, 0);
  const result = trySyscall("bind", fd, wanted, wanted.length);
  if (result >= 0) return;
  if (result !== -EADDRINUSE) {
    throw new RepriseError("SYSCALL", `cannot restore ${what}: bind: ${errnoName(-result)}`, {
      syscall: "bind",
      errno: errnoName(-result),
    });
  }
  const any = address(0, 0);
  syscall("bind", fd, any, any.length);
  log.warn(`${what} gets another port: ${portid} is taken`);
}

function address(port: number, groups: number): Buffer {
  const name = Buffer.alloc(nl.SOCKADDR_NL_SIZE);
  name.writeUInt16LE(so.AF_NETLINK, 0);
  name.writeUInt32LE(port, 4);
  name.writeUInt32LE(groups, 8);
  return name;
}
