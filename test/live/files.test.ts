import { testRoom } from "./suite.ts";

testRoom("files");
