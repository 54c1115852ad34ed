// The other direction of a page server: a lazy-pages daemon asks for pages, and gets them from a set on the disk or from tasks
// that stand still after `dump --lazy-pages`.

import { RepriseError } from "../errors.ts";
import {
  decodePageMessage,
  encodePageMessage,
  PAGE_COMMAND_SIZE,
  PageCommand,
} from "../images/page-protocol.ts";
import { PE_LAZY, PE_PRESENT, type PageRun } from "../images/pagemap.ts";
import { BareSet } from "../images/pagemap-set.ts";
import { log } from "../log.ts";
import { alignedWindow } from "../objects/memory/page-sink.ts";
import { SavedPages } from "../objects/memory/saved-pages.ts";
import type { TaskMemory } from "../objects/memory/task-memory.ts";
import { PAGE_SIZE } from "../sys/abi/mman.ts";
import { noDelay, receiveAll, sendAll } from "../sys/stream.ts";

/** Reads at most `into.length` bytes of a task's memory; 0 when there is nothing. */
export type PageReader = (
  page: { readonly pid: number; readonly address: number },
  into: Buffer,
) => number;

/**
 * Answers questions until the other side closes.
 * @throws RepriseError SYSCALL, BAD_IMAGE
 */
export function servePages(
  connection: number,
  read: PageReader,
  options: { readonly waitForEnd: boolean },
): void {
  noDelay(connection);
  const header = Buffer.alloc(PAGE_COMMAND_SIZE);
  let served = 0;
  for (;;) {
    if (!receiveAll(connection, header))
      throw new RepriseError("SYSCALL", "the lazy-pages daemon ended before it had all pages");
    const { command, pages, vaddr, target } = decodePageMessage(header);
    if (command === PageCommand.CLOSE || command === PageCommand.FORCE_CLOSE) {
      sendAll(connection, Buffer.alloc(4));
      if (options.waitForEnd) receiveAll(connection, Buffer.alloc(1));
      break;
    }
    if (command !== PageCommand.GET)
      throw new RepriseError("BAD_IMAGE", `cannot serve pages: command ${command} was sent`);
    const window = alignedWindow();
    const wanted = window.subarray(0, Math.min(window.length, pages * PAGE_SIZE));
    const got = read({ pid: Number(target), address: vaddr }, wanted);
    if (got === 0) {
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot serve pages of pid ${target}: nothing was saved at ${vaddr.toString(16)}`,
      );
    }
    const answer = {
      command: PageCommand.ADD_F,
      flags: PE_PRESENT,
      pages: got / PAGE_SIZE,
      vaddr,
      target,
    };
    sendAll(connection, encodePageMessage(answer), { more: true });
    sendAll(connection, wanted.subarray(0, got));
    served += got / PAGE_SIZE;
  }
  log.info(`served ${served} pages`);
}

/** The pages of a set. */
export class SetPages implements Disposable {
  readonly #set: BareSet;
  readonly #opened = new Map<number, SavedPages>();

  constructor(imagesDir: string) {
    this.#set = new BareSet(imagesDir);
  }

  readonly read: PageReader = ({ pid, address }, into) => {
    let saved = this.#opened.get(pid);
    if (saved === undefined) {
      saved = new SavedPages(this.#set, { kind: "pagemap", id: pid });
      this.#opened.set(pid, saved);
    }
    return saved.read(address, into);
  };

  [Symbol.dispose](): void {
    for (const saved of this.#opened.values()) saved[Symbol.dispose]();
  }
}

/** Memory of a stopped task, of which the images lack some runs. */
export interface LeftMemory {
  readonly pid: number;
  readonly runs: readonly PageRun[];
  readonly memory: TaskMemory;
}

/** Reads what a dump has left in its tasks. */
export function leftPages(tasks: readonly LeftMemory[]): PageReader {
  const byPid = new Map(tasks.map((task) => [task.pid, task]));
  return ({ pid, address }, into) => {
    const task = byPid.get(pid);
    const run = task?.runs.find(
      ({ vaddr, pages }) => vaddr <= address && address < vaddr + pages * PAGE_SIZE,
    );
    if (task === undefined || run === undefined) return 0;
    const left = run.vaddr + run.pages * PAGE_SIZE - address;
    const range = { address, length: Math.min(into.length, left) };
    const [read] = task.memory.read([range], into.subarray(0, range.length));
    return read?.address === address ? read.length : 0;
  };
}

/** Runs whose bytes are left in the tasks: those that can wait. */
export function leaveLazy(runs: readonly PageRun[]): readonly PageRun[] {
  return runs.map((run) =>
    (run.flags & (PE_LAZY | PE_PRESENT)) === (PE_LAZY | PE_PRESENT)
      ? { ...run, flags: PE_LAZY }
      : run,
  );
}
