// The TCP connections of a tree at dump. They are read together, when all are known and their packets are locked out; what is in one
// and how it is read: tcp-stream.ts.

import { RepriseError } from "../../errors.ts";
import type { InetSkEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import * as inet from "../../sys/abi/inet.ts";
import * as so from "../../sys/abi/socket.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { getOption, setNumber } from "../../sys/socket.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import type { LockedConnection } from "../network/lock.ts";
import { refusedSocket, socketName } from "./socket-refusal.ts";
import { hasUrgentData, readTcpStream } from "./tcp-stream.ts";

/** The entry of a socket; the state of a connection is read once more when its packets are locked out. */
export type InetDraft = Omit<InetSkEntry, "state"> & { state: number };

/** A connection of the tree, to be read later. */
export interface TcpConnection extends LockedConnection {
  readonly file: OpenFile;
  readonly fd: number;
  readonly isk: InetDraft;
}

/** Of one dump. */
const known = new WeakMap<FilesDump, TcpConnection[]>();

/** Has a connection saved when all are known. */
export function saveConnectionLater(connection: TcpConnection, dump: FilesDump): void {
  const connections = known.get(dump);
  if (connections !== undefined) {
    connections.push(connection);
    return;
  }
  const all = [connection];
  known.set(dump, all);
  dump.later(() => saveAll(all, dump));
}

/** Locks all connections and writes what is in them. */
function saveAll(connections: readonly TcpConnection[], dump: FilesDump): void {
  dump.lockConnections(connections);
  for (const connection of connections) writeConnection(connection, dump);
  // A socket that is closed in repair mode vanishes in silence. The copies that the engine holds are the last ones.
  dump.atEnd((tasks) => {
    if (tasks !== "alive") for (const { fd } of connections) beginRepair(fd);
  });
}

/** A look at the queue begins at the offset of SO_PEEK_OFF (since Linux 6.9), and moves it. */
function writeConnection(connection: TcpConnection, dump: FilesDump): void {
  const { fd } = connection;
  const place = { level: so.SOL_SOCKET, name: so.SO_PEEK_OFF };
  const told = getOption(fd, { ...place, size: 4 });
  const offset = typeof told === "number" ? -1 : told.readInt32LE(0);
  if (offset >= 0) setNumber(fd, { ...place, value: -1 });
  try {
    saveConnection(connection, dump);
  } finally {
    if (offset >= 0) setNumber(fd, { ...place, value: offset });
  }
}

function saveConnection({ file, fd, isk }: TcpConnection, dump: FilesDump): void {
  if (hasUrgentData(fd)) {
    throw refusedSocket(
      file,
      "a TCP connection with urgent data (MSG_OOB) that has not been read",
      "What lies behind it cannot be seen from outside. Let the process read it before the dump.",
    );
  }
  try {
    const { state, entry, received, written } = readTcpStream(fd);
    isk.state = state;
    const image = dump.images.open("tcp-stream", isk.ino);
    image.add(entry);
    image.payload(received);
    image.payload(written);
    image.close();
  } catch (error) {
    if (!(error instanceof RepriseError) || error.code !== "SYSCALL") throw error;
    const { task } = file;
    throw new RepriseError(error.code, `cannot dump ${socketName(file)}: ${error.message}`, {
      pid: task.pid,
      fd: file.fd,
      ...(error.hint === undefined ? {} : { hint: error.hint }),
      cause: error,
    });
  }
}

function beginRepair(fd: number): void {
  const on = Buffer.alloc(4);
  on.writeInt32LE(inet.TCP_REPAIR_ON);
  const result = trySyscall("setsockopt", fd, inet.SOL_TCP, inet.TCP_REPAIR, on, on.length);
  if (result < 0)
    log.warn(`a peer may be told that its connection ends: setsockopt: ${errnoName(-result)}`);
}
