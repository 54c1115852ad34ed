// The lazy side of a page server: asks for pages of a task by their address, one question at a time.

import { RepriseError } from "../errors.ts";
import {
  decodePageMessage,
  encodePageMessage,
  PAGE_COMMAND_SIZE,
  PageCommand,
} from "../images/page-protocol.ts";
import { PAGE_SIZE } from "../sys/abi/mman.ts";
import { trySyscall } from "../sys/ffi.ts";
import { connectTcp, noDelay, receiveAll, sendAll } from "../sys/stream.ts";
import type { PageServerPlace } from "./page-client.ts";

export class PageFetcher {
  readonly #connection: number;
  readonly #isGiven: boolean;

  /** @throws RepriseError SYSCALL */
  constructor(place: PageServerPlace) {
    this.#isGiven = "connection" in place;
    this.#connection = "connection" in place ? place.connection : connectTcp(place);
    noDelay(this.#connection);
  }

  /** Reads at most `into.length` bytes of a task's memory. @returns how many @throws RepriseError SYSCALL, BAD_IMAGE */
  fetch(pid: number, address: number, into: Buffer): number {
    const question = {
      command: PageCommand.GET,
      pages: into.length / PAGE_SIZE,
      vaddr: address,
      target: BigInt(pid),
    };
    sendAll(this.#connection, encodePageMessage(question));
    const header = Buffer.alloc(PAGE_COMMAND_SIZE);
    this.#receive(header);
    const { command, pages, vaddr } = decodePageMessage(header);
    const length = pages * PAGE_SIZE;
    if (command !== PageCommand.ADD_F || vaddr !== address || length > into.length)
      throw new RepriseError("BAD_IMAGE", "the page server answered something else than was asked");
    if (length > 0) this.#receive(into.subarray(0, length));
    return length;
  }

  /** Tells the server that it may end. */
  finish(): void {
    const command = this.#isGiven ? PageCommand.FORCE_CLOSE : PageCommand.CLOSE;
    sendAll(this.#connection, encodePageMessage({ command }));
    this.#receive(Buffer.alloc(4));
  }

  #receive(into: Buffer): void {
    if (receiveAll(this.#connection, into)) return;
    throw new RepriseError("SYSCALL", "the page server has closed the connection", {
      hint: "Its log says why.",
    });
  }

  close(): void {
    trySyscall("close", this.#connection);
  }
}
