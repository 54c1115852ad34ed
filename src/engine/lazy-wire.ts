// The connection between a restore and its lazy-pages daemon: CRIU's, a unix socket in the work directory. The restore
// sends, for each task, its pid and then its userfaultfd; for a zombie the pid with a minus and no descriptor; at the end
// one word (format.md section 20).

import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { SCM_RIGHTS, SOL_SOCKET } from "../sys/abi/socket.ts";
import { errnoName } from "../sys/errno.ts";
import { trySyscall } from "../sys/ffi.ts";
import { encodeControl, receiveMessage, sendMessage } from "../sys/socket.ts";
import { connectUnix, receiveAll, sendAll } from "../sys/stream.ts";

/** Name of the socket in the work directory. */
export const LAZY_SOCKET = "lazy-pages.socket";

/** "The restore is finished"; no pid is as large. */
const FINISHED = 0x5253_5446;

/** The restore's end. */
export class LazyDaemon {
  readonly #connection: number;
  #isOpen = true;

  /** @throws RepriseError SYSCALL when no daemon listens. */
  constructor(workDir: string) {
    try {
      this.#connection = connectUnix(join(workDir, LAZY_SOCKET));
    } catch (error) {
      if (!(error instanceof RepriseError)) throw error;
      throw new RepriseError(error.code, error.message, {
        ...(error.errno === undefined ? {} : { errno: error.errno }),
        hint: "Start `criu lazy-pages` with the same images and work directory before the restore.",
        cause: error,
      });
    }
  }

  /** Hands the missing memory of a task over. The descriptor stays open here. */
  give(pid: number, userfault: number): void {
    this.#sendWord(pid);
    const data = Buffer.alloc(4);
    data.writeInt32LE(userfault);
    const control = encodeControl({ level: SOL_SOCKET, type: SCM_RIGHTS, data });
    const sent = sendMessage(this.#connection, Buffer.alloc(1), { control });
    if (sent !== 1) {
      throw new RepriseError(
        "SYSCALL",
        `cannot give memory of pid ${pid} to lazy-pages: sendmsg: ${errnoName(-sent)}`,
      );
    }
  }

  /** A task without memory. */
  skip(pid: number): void {
    this.#sendWord(-pid);
  }

  /** From now on the daemon may fill memory that nobody has touched. */
  finish(): void {
    this.#sendWord(FINISHED);
    this.close();
  }

  close(): void {
    if (this.#isOpen) trySyscall("close", this.#connection);
    this.#isOpen = false;
  }

  #sendWord(word: number): void {
    const bytes = Buffer.alloc(4);
    bytes.writeInt32LE(word);
    sendAll(this.#connection, bytes);
  }
}

/** What a restore says. */
export type LazyMessage =
  | { readonly kind: "task"; readonly pid: number; readonly userfault: number }
  | { readonly kind: "zombie"; readonly pid: number }
  | { readonly kind: "finished" }
  | { readonly kind: "closed" };

/** The daemon's end: waits for the next message. @throws RepriseError SYSCALL, BAD_IMAGE */
export function receiveLazyMessage(connection: number): LazyMessage {
  const word = Buffer.alloc(4);
  if (!receiveAll(connection, word)) return { kind: "closed" };
  const pid = word.readInt32LE(0);
  if (pid === FINISHED) return { kind: "finished" };
  if (pid < 0) return { kind: "zombie", pid: -pid };
  const message = receiveMessage(connection, Buffer.alloc(1), 0);
  const rights =
    typeof message === "number"
      ? undefined
      : message.control.find(({ type }) => type === SCM_RIGHTS)?.data;
  if (rights === undefined || rights.length < 4)
    throw new RepriseError("SYSCALL", `the restore sent no userfaultfd for pid ${pid}`);
  return { kind: "task", pid, userfault: rights.readInt32LE(0) };
}
