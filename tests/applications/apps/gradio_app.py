"""A Gradio demo whose functions stream their answers."""

import sys
import time
from collections.abc import Iterator

import gradio as gr


def write(text: str) -> Iterator[str]:
    for end in range(1, len(text) + 1):
        yield text[:end]


def fail(text: str) -> Iterator[str]:
    yield text
    raise gr.Error("nothing there")


def wait(text: str) -> Iterator[str]:
    yield text
    while True:
        time.sleep(0.1)


with gr.Blocks() as demo:
    words = gr.Textbox(label="Words")
    answer = gr.Textbox(label="Answer")
    for function in (write, fail, wait):
        gr.Button(function.__name__).click(
            function, words, answer, api_name=function.__name__, concurrency_limit=4
        )

if __name__ == "__main__":
    demo.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), share=False)
