// A page server: takes the pages of a dump that runs elsewhere and writes them as pagemaps and pages files, which together
// with the other images of that dump make a set. One connection is one dump; CRIU's protocol (images/page-protocol.ts).

import { closeSync, openSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { imageName } from "../images/names.ts";
import {
  decodePageMessage,
  PAGE_COMMAND_SIZE,
  PageCommand,
  pagemapOfCode,
  type PageMessage,
} from "../images/page-protocol.ts";
import { encodePagemap, PE_PARENT, PE_PRESENT, type PagemapKind } from "../images/pagemap.ts";
import { placePages } from "../images/page-places.ts";
import { BareSet } from "../images/pagemap-set.ts";
import { log } from "../log.ts";
import { dedupParents } from "../objects/memory/dedup.ts";
import { alignedWindow, PagesFile } from "../objects/memory/page-sink.ts";
import { PAGE_SIZE, TASK_SIZE } from "../sys/abi/mman.ts";
import { noDelay, receiveAll, sendAll } from "../sys/stream.ts";

export interface PageServerOptions {
  readonly imagesDir: string;
  /** Punch what was received out of the sets before. @default false */
  readonly autoDedup?: boolean;
  /** Wait until the other side has closed, so that no port stays in TIME_WAIT here. @default false */
  readonly waitForEnd?: boolean;
}

/** What a dump has sent. */
export interface ReceivedPages {
  readonly pages: number;
  readonly inParent: number;
}

/**
 * Serves one connection until its end. The connection stays open.
 *
 * @throws RepriseError SYSCALL, BAD_IMAGE for messages that make no sense
 */
export function receivePages(connection: number, options: PageServerOptions): ReceivedPages {
  noDelay(connection);
  const server = new Receiver(connection, options);
  try {
    server.serve();
  } catch (error) {
    server.abort();
    throw error;
  }
  if (options.waitForEnd === true && receiveAll(connection, Buffer.alloc(1)))
    throw badMessage("something behind the end");
  return server.received;
}

/** Numbers of pages files begin above those of the dump, which may write into the same directory. */
const FIRST_PAGES_ID = 0x1_0001;

interface OpenPagemap {
  readonly target: bigint;
  readonly kind: PagemapKind;
  readonly id: number;
  readonly pagesId: number;
  readonly fd: number;
  readonly file: PagesFile;
  /** First address that may come next. */
  next: number;
}

class Receiver {
  readonly received = { pages: 0, inParent: 0 };
  readonly #connection: number;
  readonly #options: PageServerOptions;
  readonly #set: BareSet;
  readonly #written: string[] = [];
  readonly #done: { kind: PagemapKind; id: number }[] = [];
  #nextPagesId = FIRST_PAGES_ID;
  #open: OpenPagemap | undefined;

  constructor(connection: number, options: PageServerOptions) {
    this.#connection = connection;
    this.#options = options;
    this.#set = new BareSet(options.imagesDir);
  }

  serve(): void {
    const header = Buffer.alloc(PAGE_COMMAND_SIZE);
    for (;;) {
      if (!receiveAll(this.#connection, header)) throw badMessage("its end before all was sent");
      const message = decodePageMessage(header);
      if (message.command === PageCommand.CLOSE || message.command === PageCommand.FORCE_CLOSE) {
        this.#finish();
        if (this.#options.autoDedup === true) this.#giveBack();
        sendAll(this.#connection, Buffer.alloc(4));
        return;
      }
      this.#take(message);
    }
  }

  /** Removes what was written. */
  abort(): void {
    this.#closeFile();
    for (const name of this.#written) rmSync(join(this.#set.dir, name), { force: true });
  }

  #take(message: Required<PageMessage>): void {
    switch (message.command) {
      case PageCommand.OPEN:
        this.#start(message.target);
        break;
      case PageCommand.OPEN2: {
        const { kind, id } = this.#start(message.target);
        sendAll(this.#connection, Buffer.from([this.#hasParent(kind, id) ? 1 : 0]));
        break;
      }
      case PageCommand.PARENT: {
        const { kind, id } = pagemapOf(message.target);
        const answer = Buffer.alloc(4);
        answer.writeInt32LE(this.#hasParent(kind, id) ? 1 : 0);
        sendAll(this.#connection, answer);
        break;
      }
      case PageCommand.ADD:
        this.#add({ ...message, flags: PE_PRESENT });
        break;
      case PageCommand.HOLE:
        this.#add({ ...message, flags: PE_PARENT });
        break;
      case PageCommand.ADD_F:
        this.#add(message);
        break;
      default:
        throw badMessage(`command ${message.command}`);
    }
  }

  #start(target: bigint): OpenPagemap {
    this.#finish();
    const { kind, id } = pagemapOf(target);
    const pagesId = this.#nextPagesId++;
    const name = imageName("pages", pagesId);
    const path = join(this.#set.dir, name);
    rmSync(path, { force: true });
    const fd = openSync(path, "wx", 0o600);
    this.#written.push(name);
    const file = new PagesFile(fd, path);
    log.info(`receives ${imageName(kind, id)}`);
    return (this.#open = { target, kind, id, pagesId, fd, file, next: 0 });
  }

  #hasParent(kind: PagemapKind, id: number): boolean {
    return this.#set.parent()?.readPagemap(kind, id) !== undefined;
  }

  #add({ target, vaddr, pages, flags }: Required<PageMessage>): void {
    const open = this.#open?.target === target ? this.#open : this.#start(target);
    const end = vaddr + pages * PAGE_SIZE;
    if (vaddr % PAGE_SIZE !== 0 || vaddr < open.next || pages === 0 || end > TASK_SIZE)
      throw badMessage(`${pages} pages at ${vaddr.toString(16)}`);
    open.next = end;
    open.file.hole({ vaddr, pages, flags });
    if ((flags & PE_PARENT) !== 0) this.received.inParent += pages;
    if ((flags & PE_PRESENT) === 0) return;
    this.received.pages += pages;
    const window = alignedWindow();
    for (let left = pages * PAGE_SIZE; left > 0;) {
      const part = window.subarray(0, Math.min(left, window.length));
      if (!receiveAll(this.#connection, part))
        throw badMessage("its end before all pages were sent");
      open.file.append(part);
      left -= part.length;
    }
  }

  #finish(): void {
    const open = this.#open;
    if (open === undefined) return;
    const { kind, id, pagesId, file } = open;
    this.#closeFile();
    if (file.runs.length === 0) {
      // A task without memory: CRIU cannot read a list of no pages.
      rmSync(join(this.#set.dir, imageName("pages", pagesId)));
      return;
    }
    const name = imageName(kind, id);
    const path = join(this.#set.dir, name);
    rmSync(path, { force: true });
    this.#written.push(name);
    writeFileSync(path, encodePagemap(kind, { pagesId, runs: file.runs }), { mode: 0o600 });
    this.#checkParent(kind, id);
    this.#done.push({ kind, id });
  }

  /** What was left to the parent must be there, or the set would be worth nothing. */
  #checkParent(kind: PagemapKind, id: number): void {
    const pagemap = this.#set.readPagemap(kind, id);
    const isInParent = pagemap?.runs.some(({ flags }) => (flags & PE_PARENT) !== 0);
    if (pagemap !== undefined && isInParent === true)
      placePages(this.#set, { kind, id, pagemap }, () => undefined);
  }

  #closeFile(): void {
    if (this.#open === undefined) return;
    this.#open.file[Symbol.dispose]();
    closeSync(this.#open.fd);
    this.#open = undefined;
  }

  #giveBack(): void {
    for (const { kind, id } of this.#done) {
      const runs = this.#set.readPagemap(kind, id)?.runs ?? [];
      dedupParents(this.#set, { kind, id, runs });
    }
  }
}

function pagemapOf(target: bigint): { kind: PagemapKind; id: number } {
  const found = pagemapOfCode(target);
  if (found === undefined) throw badMessage(`pages of an unknown kind (${target})`);
  return found;
}

function badMessage(what: string): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot receive pages: the other side sent ${what}`, {
    hint: "The dump failed, or it speaks another protocol than CRIU's.",
  });
}
