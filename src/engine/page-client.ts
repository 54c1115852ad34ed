// The dump's side of a page server: pages go over a connection instead of into the images directory; see page-server.ts.

import { RepriseError } from "../errors.ts";
import { encodePageMessage, PageCommand, pagemapCode } from "../images/page-protocol.ts";
import type { RemotePages } from "../images/image-set-writer.ts";
import type { PagemapKind, PageRun, PageSink } from "../images/pagemap.ts";
import { PAGE_SIZE } from "../sys/abi/mman.ts";
import { trySyscall } from "../sys/ffi.ts";
import { connectTcp, noDelay, receiveAll, sendAll, type StreamAddress } from "../sys/stream.ts";

/** Where a page server is: an address, or a connection that somebody has made. */
export type PageServerPlace = StreamAddress | { readonly connection: number };

/** A connection to a page server. */
export class PageClient implements RemotePages {
  readonly #connection: number;
  /** A connection that others hold, too, does not end by being closed here. */
  readonly #isGiven: boolean;
  #isOpen = true;

  /** @throws RepriseError SYSCALL */
  constructor(place: PageServerPlace) {
    this.#isGiven = "connection" in place;
    this.#connection = "connection" in place ? place.connection : connectTcp(place);
    noDelay(this.#connection);
  }

  /** Whether the server has a set before the one that it receives, with this pagemap. */
  hasParent(kind: PagemapKind, id: number): boolean {
    this.#send({ command: PageCommand.PARENT, target: pagemapCode(kind, id) });
    return this.#answer(4).readInt32LE(0) > 0;
  }

  /** Begins a pagemap. `inParent` says whether runs may be left to the server's parent set. */
  open(kind: PagemapKind, id: number): PageSink & { readonly inParent: boolean } {
    const target = pagemapCode(kind, id);
    this.#send({ command: PageCommand.OPEN2, target });
    const inParent = this.#answer(1).readUInt8(0) !== 0;
    const announce = ({ vaddr, pages, flags }: PageRun, more: boolean): void => {
      const message = { command: PageCommand.ADD_F, flags, vaddr, pages, target };
      sendAll(this.#connection, encodePageMessage(message), { more });
    };
    return {
      inParent,
      hole: (run) => announce(run, true),
      pages: (runs, bytes) => {
        let at = 0;
        for (const run of runs) {
          announce(run, true);
          const length = run.pages * PAGE_SIZE;
          sendAll(this.#connection, bytes.subarray(at, at + length), {
            more: at + length < bytes.length,
          });
          at += length;
        }
      },
    };
  }

  /** Waits until the server has everything. @throws RepriseError SYSCALL */
  finish(): void {
    const command = this.#isGiven ? PageCommand.FORCE_CLOSE : PageCommand.CLOSE;
    this.#send({ command });
    const status = this.#answer(4).readInt32LE(0);
    if (status !== 0)
      throw new RepriseError("SYSCALL", `the page server failed: it answered ${status}`);
  }

  #send(message: Parameters<typeof encodePageMessage>[0]): void {
    sendAll(this.#connection, encodePageMessage(message));
  }

  #answer(size: number): Buffer {
    const answer = Buffer.alloc(size);
    if (!receiveAll(this.#connection, answer)) {
      throw new RepriseError("SYSCALL", "the page server has closed the connection", {
        hint: "Its log says why.",
      });
    }
    return answer;
  }

  close(): void {
    if (this.#isOpen) trySyscall("close", this.#connection);
    this.#isOpen = false;
  }
}
