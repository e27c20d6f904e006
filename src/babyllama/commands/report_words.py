"""The report's words in Chinese, by what they are in English. Not here: where they stand (report.html)."""

from __future__ import annotations

from typing import Any, Literal

Language = Literal["en", "zh"]
# a line in English, with {figures}, and below it the same in Chinese
_WORDS = """
minimal_pairs
    合语法句
measure_words
    量词
word_order
    语序
induction
    归纳
copying
    复制
arithmetic
    算术
hanzi_parts
    拆字
common_knowledge
    常识
idioms
    成语
verses
    古诗
word_problems
    应用题
passkey
    密码检索
instructions
    指令遵循
refusals
    拒答
cvalues
    价值观（CValues）
chinese_simpleqa
    中文事实问答
tool_calls
    工具调用
right
    正确
guessing
    随机猜测
above chance
    高于随机
not distinguishable from chance
    与随机猜测无法区分
step
    步
Loss (nats a token)
    损失（nat / token）
training
    训练
validation
    验证
pure guessing
    纯猜测
Bits per byte, validation
    每字节比特数（验证）
Learning rate
    学习率
“{name}” is a Chinese LLaMA of {parameters} parameters ({layers} layers, {width} wide, a vocabulary of {vocabulary}).
    “{name}”是一个中文 LLaMA，有 {parameters} 个参数（{layers} 层，宽 {width}，词表 {vocabulary}）。
It was trained on {tokens} tokens in {time} on {device}.
    它在 {device} 上用 {time} 训练了 {tokens} 个 token。
It needs {bits} bits for a byte of text that was held out from its training.
    对没有参加训练的文本，它每字节需要 {bits} 比特。
Of {n} tests it is above chance in {k}: {names}. In the others it cannot be told from guessing.
    {n} 项测试中有 {k} 项高于随机：{names}；其余与随机猜测无法区分。
In none of {n} tests can it be told from guessing.
    {n} 项测试中没有一项能与随机猜测区分开。
Of {n} questions that were held out it answers {exact} % word for word; {f1} % of the characters are shared.
    {n} 个没有参加训练的问题中，{exact} % 回答得一字不差；字符重合 {f1} %。
parameters
    参数
tokens trained on
    训练 token 数
all steps together
    全部步骤用时
bits per byte, {name}
    每字节比特数，{name}
validation loss, {name}
    验证损失，{name}
Where it comes from
    来历
Where the time went
    时间用在哪里
continues from {name}
    接着 {name}
not finished
    未完成
Tests side by side
    测试对比
published: {source}; not measured here
    公开数据：{source}；不是在这里测的
items
    题
A look inside {name}
    看看 {name} 的内部
Where it looks: each row is a token, the darker a square, the more it takes from that token; the mean over heads.
    注意力：每行是一个 token，方格越深，从那个 token 取得越多；各个头的平均。
layer {n}
    第 {n} 层
What it would say next after each layer, were it the last (logit lens); underlined: what does come.
    如果到某一层为止，它接下来会说什么（logit lens）；带下划线的与原文相同。
after layer {n}
    第 {n} 层之后
embedding
    嵌入
Honest limits
    局限
Reproduce
    重现
These commands repeat it, in this order.
    依次运行这些命令即可重现。
{name} is small: it says fluent things that are wrong. It is no doctor, lawyer or judge.
    {name} 很小：会流畅地说错话。它不是医生、律师，也不是法官。
{name}: {n} prompts of tests were cut to fit its context; such scores mean little.
    {name}：有 {n} 道测试题为适应上下文被截断，这样的分数没有多大意义。
{name}: {n} questions of tests occur in its training data.
    {name}：有 {n} 道测试题出现在训练数据中。
{name}: nobody looked for the tests' text in its training data.
    {name}：没有在训练数据中查找过测试题。
{name}: some figures are of text that it was trained on: they show what it remembers.
    {name}：有些数字来自训练过的文本，说明的是它记住了什么。
{name} is not finished.
    {name} 还没有完成。
Intervals are of the questions, not of the training: another seed gives another model.
    区间只反映题目的多少，不反映训练的随机性：换一个种子就是另一个模型。
vocabulary
    词表
characters a token
    每 token 字符数
documents
    文档
tokens
    token
steps
    步数
time
    用时
tokens a second
    token / 秒
of the hardware's peak
    硬件峰值占比（MFU）
energy (first card)
    能耗（第一张卡）
training loss
    训练损失
validation loss
    验证损失
bits per byte
    每字节比特数
computed on
    设备
shape
    形状
{layers} layers × {width} wide, {heads} heads
    {layers} 层 × 宽 {width}，{heads} 头
What it is made of
    由什么组成
corpus
    语料
kind
    种类
text
    文本
held out
    留出
licence
    许可
source
    来源
Abilities over the steps (percent right)
    能力随步数的变化（正确率，%）
What it wrote while it was trained
    训练时写的话
step {n}
    第 {n} 步
(nothing)
    （没有）
Measured: {name}
    测量：{name}
loss
    损失
perplexity
    困惑度
next token right
    下一个 token 正确
Tests
    测试
test
    测试
95 %
    95 % 区间
verdict
    结论
Quantised
    量化前后
before
    量化前
bits a weight
    每权重比特
bytes held
    占用内存
Questions and answers: {name}
    问与答：{name}
{n} questions: {exact} % answered word for word, {f1} % of characters shared, {ended} % ended by themselves.
    {n} 个问题：{exact} % 一字不差，字符重合 {f1} %，{ended} % 自行结束。
reference: {text}
    参考答案：{text}
Recipe, files and machine
    配方、文件与机器
written
    写出的文件
size
    大小
Loss is the average surprise at the next token, in nats.
    损失是对下一个 token 的平均意外程度（nat）。
Bits per byte is that surprise for a byte of text, so it compares models of different vocabularies.
    每字节比特数是按文本每个字节计算的意外程度，可以比较词表不同的模型。
Lower is better for both.
    两者都是越低越好。
A dot is the share of right answers, a bar its 95 % interval, the dashed line what guessing gives.
    圆点是正确率，横条是 95 % 区间，虚线是随机猜测的水平。
"""
_LINES = _WORDS.strip().splitlines()
CHINESE: dict[str, str] = dict(zip(_LINES[::2], (line.strip() for line in _LINES[1::2]), strict=True))


class Speaker:
    """English words with {figures} in them → the page's language. Words that are not in the list stay as they are."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def __call__(self, words: str, **figures: Any) -> str:
        said = CHINESE.get(words, words) if self.language == "zh" else words
        return said.format(**figures) if figures else said

    def test(self, name: str) -> str:
        """A test's name, as a heading."""
        return self(name).replace("_", " ")
