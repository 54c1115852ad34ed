// The kinds of open files that can be saved, in the order in which they are asked whether a file is theirs.

import { RepriseError } from "../../errors.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import { FdTypes, type FileEntry } from "../../images/schema/messages.generated.ts";
import { bpfMapKind } from "./bpf-map.ts";
import { epollKind } from "./epoll.ts";
import { eventfdKind } from "./eventfd.ts";
import { fanotifyKind } from "./fanotify.ts";
import { ioUringKind } from "../io-uring/ring.ts";
import { fifoKind } from "./fifo.ts";
import type { FileKind, FilesDump, OpenFile } from "./file-kind.ts";
import { inotifyKind } from "./inotify.ts";
import { memfdKind } from "./memfd.ts";
import { mqueueKind } from "./mqueue.ts";
import { needsOwner, settleOwner } from "./owner.ts";
import { pidfdKind } from "./pidfd.ts";
import { pipeKind } from "./pipe.ts";
import { isSecretMemory, unsupported } from "./refusals.ts";
import { regularKind } from "./regular.ts";
import { signalfdKind } from "./signalfd.ts";
import { timerfdKind } from "./timerfd.ts";
import { ttyKind } from "./tty.ts";
import { nsFileKind } from "../namespaces/ns-file.ts";
import { tunFileKind } from "../network/tun-file.ts";
import { netlinkKind } from "../sockets/netlink.ts";
import { packetKind } from "../sockets/packet.ts";
import { inetKind } from "../sockets/inet.ts";
import { unixKind } from "../sockets/unix.ts";
import { checkRegularFiles, type UnchangedOptions } from "./unchanged.ts";

const KINDS: readonly FileKind[] = [
  pipeKind,
  fifoKind,
  memfdKind,
  mqueueKind,
  regularKind,
  eventfdKind,
  epollKind,
  signalfdKind,
  timerfdKind,
  pidfdKind,
  inotifyKind,
  fanotifyKind,
  ttyKind,
  unixKind,
  netlinkKind,
  packetKind,
  tunFileKind,
  inetKind,
  nsFileKind,
  bpfMapKind,
  ioUringKind,
].map(withOwner);

const SOCKET_TYPES: readonly number[] = [
  FdTypes.UNIXSK,
  FdTypes.NETLINKSK,
  FdTypes.PACKETSK,
  FdTypes.INETSK,
];
const SOCKETS = KINDS.filter(({ type }) => SOCKET_TYPES.includes(type));

const BY_TYPE = new Map<number, FileKind>(KINDS.map((kind) => [kind.type, kind]));

/**
 * The room of an open file.
 * @throws RepriseError UNSUPPORTED naming pid, fd and what the file is.
 */
export function kindOf(file: OpenFile, dump: FilesDump): FileKind {
  // It looks like a file that was deleted.
  if (isSecretMemory(file)) throw unsupported(file);
  // There may be thousands of sockets, and of no other kind has a file such a name.
  const kinds = file.target.startsWith("socket:[") ? SOCKETS : KINDS;
  const kind = kinds.find((candidate) => candidate.recognise(file, dump));
  if (kind === undefined) throw unsupported(file);
  return kind;
}

/**
 * The room of an entry in files.img, by its type.
 * @throws RepriseError UNSUPPORTED
 */
export function kindOfType(type: number): FileKind {
  const kind = BY_TYPE.get(type);
  if (kind === undefined) {
    const name = Object.entries(FdTypes).find(([, value]) => value === type)?.[0] ?? "unknown";
    throw new RepriseError("UNSUPPORTED", `cannot restore an open file of type ${type} (${name})`, {
      hint: "The image set comes from an engine that can save this kind of file; restore it there.",
    });
  }
  return kind;
}

/**
 * Checks at plan time what can be checked of the files that a restore will open.
 * @throws RepriseError UNSUPPORTED for kinds that cannot be restored, FILE_CHANGED for regular files that differ.
 */
export function checkFiles(
  files: readonly FileEntry[],
  set: LoadedSet,
  options: UnchangedOptions,
): void {
  for (const { type } of files) kindOfType(type);
  checkRegularFiles(files, set, options);
}

/** Every kind may have a signal owner, which is set when all tasks are there. */
function withOwner(kind: FileKind): FileKind {
  return {
    ...kind,
    settle: (program, entry, fd, restore) => {
      kind.settle?.(program, entry, fd, restore);
      if (needsOwner(entry)) settleOwner(program, entry, fd);
    },
  };
}
