import { testRoom } from "./suite.ts";

testRoom("threads");
